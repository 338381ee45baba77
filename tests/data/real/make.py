"""What ONNX Runtime computes for SmolLM2-135M-Instruct: makes `smollm2-135m.json` beside this file.

    python3 make.py MODEL_FOLDER

MODEL_FOLDER holds model.onnx, tokenizer.json and config.json: an export of transformers' model with cache. The file has

| key | what |
|---|---|
| `rows` | ids of rows of text, and some logits after the last of them: `entries`, the 64 greatest and 448 spread evenly, and their `logits` |
| `answers` | questions, the prompts that ask them, their ids, the greedy continuation, its text, and at every step the difference of the two greatest logits |

Needs onnxruntime, numpy and tokenizers.
"""
import json, pathlib, sys
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "benchmarks/real"))
import numpy as np
from reference import CHAT, Model, ROOT, top2
from tokenizers import Tokenizer

QUESTIONS = ["What is the capital of France?", "Write one sentence about the sea.", "What is 2 + 2?",
             "List three primary colors.", "Explain in two sentences what a hash table is.",
             "Write a story about a robot that learns to paint.", "Explain how photosynthesis works."]
STEPS = 48
END = 2

folder = pathlib.Path(sys.argv[1])
model = Model(folder, 2)
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
rows = []
for ids in [encode(CHAT.format(QUESTIONS[0])), encode((ROOT / "LICENSE").read_text())[:224]]:
    logits = model.logits([ids])[0, -1]
    order = np.argsort(-logits, kind="stable")
    entries = sorted({int(i) for i in order[:64]} | {int(i) for i in np.linspace(0, len(logits) - 1, 448)})
    rows.append(dict(ids=ids, entries=entries, logits=[round(float(logits[i]), 5) for i in entries]))
answers = []
for question in QUESTIONS:
    ids, new, margins = encode(CHAT.format(question)), [], []
    while len(new) < STEPS and (not new or new[-1] != END):
        first, _, margin = top2(model.logits([ids + new])[0, -1])
        new.append(first)
        margins.append(round(margin, 4))
    answers.append(dict(question=question, prompt=CHAT.format(question), prompt_ids=ids, new_ids=new, text=tokenizer.decode(new), margin_to_second=margins))
    print(question, "->", answers[-1]["text"][:80])
path = pathlib.Path(__file__).parent / "smollm2-135m.json"
path.write_text(json.dumps(dict(rows=rows, answers=answers)) + "\n")
