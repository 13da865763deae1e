"""What goes wrong outside of our code while a recipe trains, said in words that tell what to do."""

import contextlib
import os
import re
from collections.abc import Iterator

from hf_efficient.errors import TrainingError

_GO_ON = "what is saved stays: continue with --resume"
_KNOWN = {
    r"out of memory|can't allocate memory|Cannot allocate memory": (
        "there is not enough memory ({reason}): split_on_out_of_memory, or a smaller per_device_train_batch_size and "
        "as much more gradient_accumulation_steps, train the same with less; or activation_checkpointing"
    ),
    # The last is a socket's, which is no file of anybody's
    r"DataLoader worker|^Connection\w*Error|^BrokenPipeError|^EOFError|^FileNotFoundError.*directory$": (
        "a process that loads data has died ({reason}): memory is short as a rule; fewer dataloader_num_workers, or 0"
    ),
    r"[Tt]imed out|[Tt]imeout|Connection (closed|reset) by peer|heartbeat|broadcast.*aborted": (
        "process {rank} of {count} has waited in vain for another ({reason}): one that says nothing like this has died "
        "or hangs; its own output tells why. ddp_timeout says how many seconds are waited"
    ),
}


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """
    Raises:
        TrainingError: in the place of a RuntimeError, MemoryError or broken pipe that is known; others pass.
    """
    try:
        yield
    except (RuntimeError, MemoryError, ConnectionError, EOFError, FileNotFoundError) as error:
        text = " ".join(str(error).split()) or ("out of memory" if isinstance(error, MemoryError) else "")
        reason = f"{type(error).__name__}: {text[:160]}"
        for pattern, told in _KNOWN.items():
            if re.search(pattern, reason):
                rank, count = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
                raise TrainingError(f"{told.format(reason=reason, rank=rank, count=count)}; {_GO_ON}") from error
        raise
