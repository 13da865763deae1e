"""Measured figures: what they count, what they leave untouched, and that slower is told as slower."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from hf_efficient import timing
from hf_efficient.errors import ConfigError
from hf_efficient.machine import available_cores
from hf_efficient.measure import (
    Measurement,
    PeakMemory,
    Timing,
    TorchRuntime,
    bytes_on_disk,
    count_parameters,
    machine,
    measure,
    measurement_lock,
    peak_memory_mb,
    state_bytes,
)
from tests.clock import Clock, clock_of
from tests.golden import make
from tests.tiny import image_examples, image_model, pad, seq2seq_examples, seq2seq_model, text_examples, text_model

SHORT = {"seconds": 0, "repeats": 1, "warmup": 1}


@pytest.fixture(autouse=True)
def short_and_undisturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock of this test's own, so that others' measurements do not hold it up, and short pilots."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(timing, "PILOT_SECONDS", 0.02)


@pytest.fixture
def clock() -> Iterator[Clock]:
    yield from clock_of(timing)


class Sleeper:
    """A runtime whose speed is known: ``seconds(batch size, threads)`` of ``clock`` for each batch. Keeps what it was
    asked."""

    name, version, device = "Sleeper", "1", "cpu"

    def __init__(self, clock: Clock, seconds: Callable[[int, int], float] = lambda size, threads: 0.0001):
        self.clock = clock
        self.seconds = seconds
        self.threads = 1
        self.seen: list[list[int]] = []

    def set_threads(self, threads: int) -> None:
        self.threads = threads

    def predict(self, batch: Mapping[str, Any]) -> None:
        self.seen.append(batch["lengths"])
        self.clock.sleep(self.seconds(len(batch["lengths"]), self.threads))


def lengths(examples: list[Any]) -> dict[str, Any]:
    return {"lengths": [len(example["input_ids"]) for example in examples]}


def tokens(count: int) -> list[dict[str, Any]]:
    """Examples of 1, 2, ... tokens."""
    return [{"input_ids": [0] * length} for length in range(1, count + 1)]


def measure_text(model: nn.Module, **settings: Any) -> Timing:
    return measure(TorchRuntime(model), text_examples(40), pad, batch_size=8, **{**SHORT, **settings})


class TestCounts:
    def test_zeroed_parameters_are_not_counted_as_nonzero(self) -> None:
        model = text_model()
        total, nonzero = count_parameters(model)
        assert total == sum(parameter.numel() for parameter in model.parameters())
        weight = model.bert.encoder.layer[0].intermediate.dense.weight
        assert torch.count_nonzero(weight) == 16 * 32
        with torch.no_grad():
            weight[:, ::2] = 0
        assert count_parameters(model) == (total, nonzero - 16 * 32 // 2)

    def test_tied_weights_count_once(self) -> None:
        model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
        assert count_parameters(model) == (72, 72)
        assert state_bytes(model) == 72 * 4
        model[1].weight = model[0].weight
        assert count_parameters(model) == (36, 36)
        assert state_bytes(model) == 36 * 4

    @pytest.mark.parametrize("build", [text_model, image_model, seq2seq_model])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_bytes_are_those_of_the_file(self, tmp_path: Path, build: Any, dtype: torch.dtype) -> None:
        model = build().to(dtype)
        model.save_pretrained(tmp_path)
        file = tmp_path / "model.safetensors"
        header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
        assert bytes_on_disk(tmp_path) == file.stat().st_size
        assert state_bytes(model) == file.stat().st_size - header

    def test_bytes_on_disk_are_of_weight_files_only(self, tmp_path: Path) -> None:
        counted = {"model-1.safetensors": 3, "model-2.safetensors": 4, "model.onnx": 5, "model.onnx_data": 6}
        counted |= {"openvino_model.xml": 7, "openvino_model.bin": 8, "model.onnx.data": 9}
        others = [
            "training_args.bin",
            "optimizer.bin",
            "optimizer.pt",
            "tokenizer.json",
            "model.safetensors.index.json",
        ]
        for name, size in {**counted, **dict.fromkeys(others, 100)}.items():
            (tmp_path / name).write_bytes(b"x" * size)
        (tmp_path / "checkpoint-1").mkdir()
        (tmp_path / "checkpoint-1" / "model.safetensors").write_bytes(b"x" * 1000)
        assert bytes_on_disk(tmp_path) == sum(counted.values())

    def test_folder_without_weights_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "training_args.bin").touch()
        with pytest.raises(ConfigError, match="save the model there first"):
            bytes_on_disk(tmp_path)


class TestTiming:
    def test_times_what_it_took(self, clock: Clock) -> None:
        timed = measure(Sleeper(clock, lambda size, threads: 0.006), tokens(20), lengths, batch_size=8, **SHORT)
        assert timed.latency_ms == pytest.approx({"p50": 6, "p95": 6})
        assert timed.throughput == pytest.approx(8 / 0.006)

    def test_throughput_counts_all_examples_over_all_batches(self, clock: Clock) -> None:
        sleeper = Sleeper(clock, lambda size, threads: 0.004)
        timed = measure(sleeper, tokens(20), lengths, batch_size=8, seconds=0.1)
        assert timed.throughput == pytest.approx(20 / 3 / 0.004)  # 20 in batches of 8, 8 and 4

    def test_p95_is_the_slow_tail(self, clock: Clock) -> None:
        runtime = Sleeper(clock)
        runtime.seconds = lambda size, threads: 0.02 if len(runtime.seen) % 10 == 0 else 0.001
        timed = measure(runtime, tokens(20), lengths, **{**SHORT, "repeats": 2})
        assert timed.latency_ms == pytest.approx({"p50": 1, "p95": 20})

    def test_each_figure_gets_its_best_thread_count(self, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(timing, "thread_candidates", lambda: [1, 2, 4])
        runtime = Sleeper(clock, lambda size, threads: 0.004 / threads if size > 1 else 0.001 * threads)
        timed = measure(runtime, tokens(20), lengths, **SHORT)
        assert timed.threads == {"latency": 1, "throughput": 4}
        assert timed.latency_ms["p50"] == pytest.approx(1)
        assert timed.throughput == pytest.approx(20 / 0.001)

    def test_stated_runs_are_made_and_more_in_more_time(self, clock: Clock) -> None:
        runtime = Sleeper(clock, lambda size, threads: 0.0005)
        least = measure(runtime, tokens(20), lengths, batch_size=8, repeats=2, seconds=0, warmup=0)
        assert least.repeats == {"latency": 2, "throughput": 2}
        assert sum(len(batch) == 1 for batch in runtime.seen) >= 2 * timing.LATENCY_RUNS
        more = measure(runtime, tokens(20), lengths, batch_size=8, repeats=2, seconds=0.2)
        assert more.repeats["latency"] > 2
        assert more.repeats["throughput"] > 2

    def test_slow_batches_stay_within_the_time(self, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(timing, "thread_candidates", lambda: [1])
        runtime = Sleeper(clock, lambda size, threads: 0.05 if size > 1 else 0.0001)
        measure(runtime, tokens(400), lengths, batch_size=4, repeats=2, seconds=0.3, warmup=0)
        batches = [batch for batch in runtime.seen if len(batch) > 1]
        assert 4 <= len(batches) <= 10  # a pass over all would take 100 of them

    def test_few_runs_see_the_same_mix_of_lengths(self, clock: Clock) -> None:
        runtime = Sleeper(clock)
        timed = measure(runtime, tokens(256), lengths, seconds=0.02, warmup=0)
        assert timed.input_lengths == {"mean": 128.5, "p50": 128.5, "max": 256}
        singles = [batch[0] for batch in runtime.seen if len(batch) == 1]
        for start in range(0, 100, 7):
            window = singles[start : start + 20]
            assert 110 < sum(window) / len(window) < 147
        assert sorted(length for batch in runtime.seen[-8:] for length in batch) == list(range(1, 257))

    def test_preprocessing_is_timed_on_the_raw_twin(self, clock: Clock) -> None:
        twins: list[int] = []

        def preprocess(raw: list[int]) -> dict[str, Any]:
            clock.sleep(0.005)
            twins.extend(raw)
            return {"lengths": raw}

        runtime = Sleeper(clock, lambda size, threads: 0.001)
        timed = measure(
            runtime, tokens(16), lengths, batch_size=4, preprocess=preprocess, raw=list(range(1, 17)), **SHORT
        )
        assert (timed.latency_ms["p50"], timed.latency_with_preprocessing_ms["p50"]) == pytest.approx((1, 6))
        assert timed.throughput == pytest.approx(4 / 0.001)
        assert timed.throughput_with_preprocessing == pytest.approx(4 / 0.006)
        assert set(twins) == set(range(1, 17))
        single = [batch[0] for batch in runtime.seen if len(batch) == 1]
        assert single[-30:] == single[-61:-31]  # the same order of lengths, after one warm-up run

    def test_without_preprocessing_there_are_no_such_figures(self) -> None:
        timed = measure_text(text_model())
        assert timed.latency_with_preprocessing_ms is None
        assert timed.throughput_with_preprocessing is None

    def test_what_it_says_about_itself(self) -> None:
        timed = measure_text(text_model())
        assert (timed.runtime, timed.runtime_version, timed.device) == ("PyTorch", torch.__version__, "cpu")
        assert (timed.batch_size, timed.examples) == (8, 40)
        assert timed.machine == machine()
        assert 3 <= timed.input_lengths["p50"] <= timed.input_lengths["max"] == 8
        assert set(timed.threads.values()) <= set(timing.thread_candidates())

    def test_batch_size_is_the_one_that_was_timed(self) -> None:
        assert measure(TorchRuntime(text_model()), text_examples(5), pad, **SHORT).batch_size == 5

    def test_images_have_no_input_lengths(self) -> None:
        timed = measure(TorchRuntime(image_model()), image_examples(4), pad_images, **SHORT)
        assert timed.input_lengths is None
        assert timed.throughput > 0

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
            ({"repeats": 0}, "repeats must be at least 1"),
            ({"warmup": -1}, "warmup must be at least 0"),
            ({"seconds": -1}, "seconds must be 0 or more"),
            ({"seconds": float("nan")}, "seconds must be 0 or more"),
            ({"raw": ["a"]}, "one raw example for each"),
            ({"preprocess": lengths}, "one raw example for each"),
        ],
    )
    def test_bad_settings_are_refused(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            measure(Sleeper(Clock()), tokens(2), lengths, **settings)

    def test_no_examples_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="no examples"):
            measure(Sleeper(Clock()), [], lengths)


def pad_images(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.stack([example["pixel_values"] for example in examples])}


class TestUndisturbed:
    @pytest.fixture(autouse=True)
    def three_threads(self) -> Any:
        """A count that is no candidate, so that forgetting to restore it shows."""
        before = torch.get_num_threads()
        torch.set_num_threads(available_cores() + 1)
        yield
        torch.set_num_threads(before)

    def test_threads_and_training_flags_come_back(self) -> None:
        model = text_model().train()
        model.bert.embeddings.eval()
        flags = [module.training for module in model.modules()]
        during: set[bool] = set()
        model.classifier.register_forward_pre_hook(
            lambda module, inputs: during.update(module.training for module in model.modules())
        )
        measure_text(model)
        assert during == {False}
        assert [module.training for module in model.modules()] == flags
        assert torch.get_num_threads() == available_cores() + 1

    def test_also_when_the_model_fails(self) -> None:
        model = text_model().train()
        with pytest.raises(IndexError):
            measure(TorchRuntime(model), [{"input_ids": torch.tensor([10_000])}], pad, **SHORT)
        assert model.training
        assert torch.get_num_threads() == available_cores() + 1
        with measurement_lock(timeout_s=0):
            pass

    def test_predict_alone_is_free_of_dropout_and_restores_the_flag(self) -> None:
        model = text_model(hidden_dropout_prob=0.5).train()
        batch = pad(text_examples(4))
        first, second = (TorchRuntime(model).predict(batch).logits for _ in range(2))
        assert torch.equal(first, second)
        assert model.training
        assert not first.requires_grad


class TestTorchRuntime:
    def seen(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
        """Arguments that ``model`` is called with."""
        calls: list[dict[str, Any]] = []
        model.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
        TorchRuntime(model).predict(batch)
        return calls[0]

    def test_labels_are_dropped(self) -> None:
        batch = pad(text_examples(2))
        assert "labels" in batch
        assert set(self.seen(text_model(), batch)) == {"input_ids", "attention_mask"}
        assert "labels" in batch

    def test_decoder_inputs_come_from_the_labels(self) -> None:
        batch = pad(seq2seq_examples(2))
        given = self.seen(seq2seq_model(), batch)
        assert set(given) == {"input_ids", "attention_mask", "decoder_input_ids"}
        assert torch.equal(given["decoder_input_ids"][0, 1:], batch["labels"][0, :-1].clamp(min=1))

    @pytest.mark.gpu
    def test_on_a_gpu(self) -> None:
        model = text_model().cuda()
        timed = measure_text(model)
        assert timed.device == "cuda:0"
        assert timed.threads == dict.fromkeys(("latency", "throughput"), torch.get_num_threads())
        assert timed.machine["accelerator"] == torch.cuda.get_device_name()
        with PeakMemory() as peak:
            torch.ones(50_000_000, device="cuda")
        assert peak.device_peak_mb >= 200


class TestMeasurement:
    def test_round_trip(self, tmp_path: Path) -> None:
        model = text_model()
        model.save_pretrained(tmp_path)
        taken = measure_text(model)
        whole = Measurement.of(taken, model, tmp_path, {"process": 1.5, "libraries": 1.0})
        assert Timing.from_dict(json.loads(json.dumps(taken.to_dict()))) == taken
        assert Measurement.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole
        assert (whole.parameters, whole.nonzero_parameters) == count_parameters(model)
        assert whole.bytes_on_disk == bytes_on_disk(tmp_path) > Measurement.of(taken, model).bytes_on_disk
        assert whole.latency_ms == taken.latency_ms

    def test_turns_come_to_their_medians(self) -> None:
        taken = measure_text(text_model())
        turns = [
            replace(taken, throughput=rate, latency_ms={"p50": slow, "p95": 2 * slow}, repeats={"latency": 1})
            for rate, slow in ((10.0, 3.0), (40.0, 1.0), (30.0, 9.0))
        ]
        merged = Timing.of_turns(turns)
        assert (merged.throughput, merged.latency_ms) == (30.0, {"p50": 3.0, "p95": 6.0})
        assert merged.repeats == {"latency": 3}
        assert merged.throughput_with_preprocessing is None
        assert replace(merged, throughput=10.0, repeats={"latency": 1}) == turns[0]

    def test_damaged_values_are_refused(self) -> None:
        model = text_model()
        values = Measurement.of(measure_text(model), model).to_dict()
        with pytest.raises(ConfigError, match="did you mean 'throughput'"):
            Measurement.from_dict({**values, "throughputt": 1})
        del values["latency_ms"]
        with pytest.raises(ConfigError, match="lacks latency_ms"):
            Measurement.from_dict(values)


class TestFreshProcess:
    def test_fresh_process_of_a_small_and_a_large_model(self, tmp_path: Path) -> None:
        make.model().save_pretrained(tmp_path / "small")  # changed shapes: loads only with this package imported
        small_but_for = {"num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64, "hidden_size": 64}
        BertModel(BertConfig(**small_but_for, intermediate_size=400_000)).save_pretrained(tmp_path / "large")
        weights_mb = bytes_on_disk(tmp_path / "large") / 1e6
        batch = {"input_ids": make.INPUT, "attention_mask": make.MASK, "labels": torch.zeros(len(make.INPUT))}
        ballast = torch.ones(200_000_000)  # memory of this process must not be counted as the fresh one's
        small, large = (peak_memory_mb(tmp_path / name, batch) for name in ("small", "large"))
        assert ballast.sum() > 0
        assert small["libraries"] < small["process"] < 800
        assert large["process"] > small["process"] + 0.8 * weights_mb
        assert large["process"] - large["libraries"] < 4 * weights_mb + 100
        assert "device" not in small

    def test_failure_says_why(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"architectures": ["NoSuchModel"]}')
        with pytest.raises(ConfigError, match="NoSuchModel, which transformers does not have"):
            peak_memory_mb(tmp_path, pad(text_examples(1)))
