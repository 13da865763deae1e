"""Write the golden checkpoint of the current manifest format: `python -m tests.golden.make`.

Later versions of hf_efficient must load every folder here to the same logits, so never rewrite an existing one: raise
`FORMAT_VERSION` first.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, BertConfig, set_seed

from hf_efficient.checkpoint import FORMAT_VERSION, ManifestConfig, build

SHAPES = {
    "encoder.layer.0.intermediate.dense": {"out_features": 12},
    "encoder.layer.0.output.dense": {"in_features": 12},
    "encoder.layer.1.intermediate.dense": {"out_features": 20},
    "encoder.layer.1.output.dense": {"in_features": 20},
    "encoder.layer.1.attention.self": {"num_attention_heads": 1, "all_head_size": 8},
    "encoder.layer.1.attention.self.query": {"out_features": 8},
    "encoder.layer.1.attention.self.key": {"out_features": 8},
    "encoder.layer.1.attention.self.value": {"out_features": 8},
    "encoder.layer.1.attention.output.dense": {"in_features": 8},
}
"""A BERT whose two layers have different feed-forward widths and head counts."""

INPUT = torch.tensor([[2, 5, 9, 3], [2, 7, 3, 0]])
MASK = (INPUT > 0).long()


def model() -> torch.nn.Module:
    set_seed(0)
    config = BertConfig(
        vocab_size=16,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=8,
        num_labels=3,
    )
    config.quantization_config = ManifestConfig(modules=SHAPES)
    built = build(config, AutoModelForSequenceClassification).eval()
    for parameter in built.parameters():  # random weights of std 0.02 would give all but constant logits
        torch.nn.init.normal_(parameter, std=0.3)
    return built


def main() -> None:
    folder = Path(__file__).parent / f"v{FORMAT_VERSION}"
    folder.mkdir()
    made = model()
    made.save_pretrained(folder)
    with torch.no_grad():
        save_file({"logits": made(INPUT, MASK).logits}, folder / "expected.safetensors")


if __name__ == "__main__":
    main()
