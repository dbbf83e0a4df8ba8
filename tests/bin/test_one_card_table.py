"""The table of setups that fit one card: its rows on a small model, and that the page names the command."""

from __future__ import annotations

from pathlib import Path

from studies import one_card_table
from transformers import LlamaConfig


def test_rows_say_what_fits(tmp_path: Path) -> None:
    LlamaConfig(
        hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4, vocab_size=300
    ).save_pretrained(tmp_path)
    whole, lora = (
        one_card_table.row("sft", setup, small=True, architecture=str(tmp_path)).split(" | ")
        for setup in ("all weights", "LoRA, nf4 base")
    )
    assert whole[0] == "| `sft.yaml`, small passes"
    assert lora[0] == "| `sft_lora.yaml`, small passes"
    assert lora[5:8] == ["yes", "yes", "yes"]
    assert float(lora[2]) <= float(whole[2])


def test_the_page_has_a_row_for_every_setup() -> None:
    page = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert "bin/studies/one_card_table.py" in page
    for stage in one_card_table.STAGES:
        for setup, (suffix, _) in one_card_table.SETUPS.items():
            for small in ("", ", small passes"):
                assert f"| `{stage}{suffix}.yaml`{small} | {setup} |" in page
