"""Token sequences for a real model, and what ONNX Runtime computes for them.

    python3 reference.py MODEL_FOLDER text OUT          at least 1100 positions of text, logits of every position
    python3 reference.py MODEL_FOLDER answers OUT       stored answers behind their prompts, logits of every position
    python3 reference.py MODEL_FOLDER adversarial OUT   every kind of odd prompt, the last position of each

MODEL_FOLDER holds model.onnx, tokenizer.json and config.json, as `fetch-model` writes them. OUT gets

    sequences.json    a list of objects with a name and ids
    tokens.txt        the same ids, a sequence a line
    NAME.npy          text, answers: float32 [positions, vocabulary], the logits
    NAME.ids.npy      text, answers: int64 [1, positions], the ids as an input of the model
    NAME.npy          adversarial: float32 [vocabulary], the logits of the last position
    adversarial.json  adversarial: next token, second token, margin and greatest logit at the last position of each

Needs onnxruntime, numpy and tokenizers.
"""
import argparse, json, pathlib

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
QUESTIONS = ["What is the capital of France?", "Write one sentence about the sea.", "What is 2 + 2?",
             "Explain how photosynthesis works.", "Give me a recipe for pancakes."]
# Files of this repository: a licence, prose, tables of numbers, source.
TEXTS = [("licence", "LICENSE", 512), ("prose", "ARCHITECTURE.md", 256), ("numbers", "benchmarks/marill/README.md", 128),
         ("source", "examples/src/generate/attention.rs", 256)]
CHAT = ("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n")


class Model:
    def __init__(self, folder, threads):
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        self.session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        config = json.loads((folder / "config.json").read_text())
        self.cache = (config["num_key_value_heads"], config["head_dim"])
        self.vocab, self.bos = config["vocab_size"], config.get("bos_token_id")

    def logits(self, rows):
        """Logits [rows, positions, vocabulary] of rows of equal length."""
        ids = np.asarray(rows, np.int64)
        batch, length = ids.shape
        feeds = dict(input_ids=ids, attention_mask=np.ones_like(ids),
                     position_ids=np.tile(np.arange(length, dtype=np.int64), (batch, 1)))
        heads, size = self.cache
        for value in self.session.get_inputs():
            if value.name.startswith("past_key_values."):
                feeds[value.name] = np.zeros((batch, heads, 0, size), np.float32)
        return self.session.run(["logits"], {value.name: feeds[value.name] for value in self.session.get_inputs()})[0]


def text_sequences(tokenizer):
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    found = [dict(name=name, ids=encode((ROOT / file).read_text())[:count]) for name, file, count in TEXTS]
    found += [dict(name=f"chat-{k}", ids=encode(CHAT.format(q))) for k, q in enumerate(QUESTIONS)]
    assert sum(len(s["ids"]) for s in found) >= 1100, "the texts have become shorter"
    return found


def answer_sequences(file):
    answers = json.loads(file.read_text())["answers"]
    return [dict(name=f"answer-{k}", ids=a["prompt_ids"] + a["new_ids"]) for k, a in enumerate(answers)]


def adversarial_sequences(model, longest, alone, drawn):
    rng = np.random.default_rng(1)
    token = lambda: int(rng.integers(model.vocab))
    # Every token once where `alone` is the size of the vocabulary; special tokens, which come first, in any case.
    chosen = sorted({int(i) for i in np.linspace(0, model.vocab - 1, alone)} | set(range(17)))
    found = [dict(name=f"alone-{t}", ids=[t]) for t in chosen]
    for t in list(range(17)) + [token() for _ in range(15)]:
        found.append(dict(name=f"repeated-{t}", ids=[t] * longest))
    for k in range(drawn):
        length = int(np.exp(rng.uniform(np.log(2), np.log(64))))
        found.append(dict(name=f"random-{k}", ids=[token() for _ in range(length)]))
    found.append(dict(name="longest", ids=[token() for _ in range(longest)]))
    return found


def top2(row):
    second, first = (int(i) for i in np.argsort(row, kind="stable")[-2:])
    return first, second, float(row[first]) - float(row[second])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("kind", choices=["text", "answers", "adversarial"])
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--longest", type=int, default=512, help="length of repeated tokens and of the longest prompt")
    parser.add_argument("--alone", type=int, default=4500, help="how many tokens stand alone in a prompt")
    parser.add_argument("--drawn", type=int, default=500, help="how many prompts are drawn")
    parser.add_argument("--answers", type=pathlib.Path, default=ROOT / "tests/data/real/smollm2-135m.json",
                        help="a file with answers, each of prompt_ids and new_ids")
    args = parser.parse_args()
    model = Model(args.model, args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.kind != "adversarial":
        sequences = (answer_sequences(args.answers) if args.kind == "answers" else
                     text_sequences(Tokenizer.from_file(str(args.model / "tokenizer.json"))))
        for s in sequences:
            np.save(args.out / f"{s['name']}.npy", model.logits([s["ids"]])[0])
            np.save(args.out / f"{s['name']}.ids.npy", np.asarray([s["ids"]], np.int64))
    else:
        sequences = adversarial_sequences(model, args.longest, args.alone, args.drawn)
        results, by_length = {}, {}
        for s in sequences:
            by_length.setdefault(len(s["ids"]), []).append(s)
        for length, group in sorted(by_length.items()):
            step = max(1, 256 // length)
            for k in range(0, len(group), step):
                part = group[k:k + step]
                for s, row in zip(part, model.logits([s["ids"] for s in part])[:, -1]):
                    first, second, margin = top2(row)
                    np.save(args.out / f"{s['name']}.npy", row)
                    results[s["name"]] = dict(next=first, second=second, margin=round(margin, 5), logit=float(row[first]))
        (args.out / "adversarial.json").write_text(json.dumps(results) + "\n")
    (args.out / "sequences.json").write_text(json.dumps(sequences) + "\n")
    (args.out / "tokens.txt").write_text("".join(" ".join(map(str, s["ids"])) + "\n" for s in sequences))
    print(f"{len(sequences)} sequences, {sum(len(s['ids']) for s in sequences)} tokens in {args.out}")


if __name__ == "__main__":
    main()
