"""What an implementation computed beside ONNX Runtime's reference of `reference.py`.

    python3 compare.py text REFERENCE GOT            agreement, perplexity, errors of logits
    python3 compare.py adversarial REFERENCE GOT     right, near ties and wrong ones, counted
    python3 compare.py greedy ANSWERS.json GOT       answers as far as margins decide them

GOT for text is a folder of NAME.npy: float32 [positions, vocabulary], or int64 [positions], the next tokens alone; an axis
for a batch of one may come first. For
adversarial it is a JSON object from names to next tokens; `null` stands for a clear error; NAME.npy beside it, float32
[vocabulary], are the logits of the last position, where they are known. For greedy it is a JSON list of
lists of tokens, one for each answer of ANSWERS.json, or `null` where one was not asked for.

A near tie is a position whose reference has its two greatest logits less than --near apart. Ends with 1 where something is
wrong beyond that. Needs numpy.
"""
import argparse, json, pathlib, sys

import numpy as np


VERDICTS = ["right", "near ties", "clear errors", "WRONG"]


def log_softmax(z):
    z = z.astype(np.float64) - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def text(reference, got, near):
    rows, ties, wrong, errors = [], [], [], []
    loss, kl, scored = np.zeros(2), [], 0
    for s in json.loads((reference / "sequences.json").read_text()):
        file = got / f"{s['name']}.npy"
        if not file.exists():
            print(f"{s['name']}: nothing to compare")
            continue
        want, have = np.load(reference / file.name), np.load(file)
        if have.ndim == 3 and len(have) == 1:
            have = have[0]
        if len(have) != len(want) or (have.ndim == 2 and have.shape != want.shape):
            sys.exit(f"{file}: shape {have.shape}, expected {want.shape}, or its first axis alone")
        order = np.argsort(-want, axis=-1, kind="stable")[:, :2]
        margins = np.take_along_axis(want, order, -1) @ np.array([1.0, -1.0])
        next_tokens = have.argmax(-1) if have.ndim == 2 else have
        for k in np.flatnonzero(next_tokens != order[:, 0]):
            entry = f"{s['name']} position {k}: {next_tokens[k]} for {order[k, 0]}, margin {margins[k]:.4f}"
            (ties if margins[k] < near else wrong).append(entry)
        rows.append((len(want), int((next_tokens == order[:, 0]).sum())))
        if have.ndim == 2:
            errors.append(np.abs(have.astype(np.float64) - want))
            a, b = log_softmax(want), log_softmax(have)
            kl.append((np.exp(a) * (a - b)).sum(-1))
            following = np.asarray(s["ids"][1:])
            loss -= [np.take_along_axis(p[:-1], following[:, None], -1).sum() for p in (a, b)]
            scored += len(following)
    positions, same = (sum(column) for column in zip(*rows)) if rows else (0, 0)
    if positions == 0:
        sys.exit("nothing was compared")
    print(f"next tokens: {same} of {positions} the same, {100 * same / positions:.3f} %")
    print("\n".join(["near ties:"] + ties if ties else ["no near tie differs"]))
    print("\n".join(["WRONG:"] + wrong if wrong else ["none is wrong"]))
    if errors:
        worst, mean = max(e.max() for e in errors), sum(e.sum() for e in errors) / sum(e.size for e in errors)
        perplexity = np.exp(loss / scored)
        print(f"logits: greatest error {worst:.5f}, mean {mean:.6f}")
        print(f"perplexity: {perplexity[0]:.5f}, here {perplexity[1]:.5f}, {100 * (perplexity[1] / perplexity[0] - 1):+.4f} %")
        kl = np.concatenate(kl)
        print(f"divergence (KL) in nats: mean {kl.mean():.2e}, greatest {kl.max():.2e}")
    return not wrong


def adversarial(reference, got, near):
    want, have = json.loads((reference / "adversarial.json").read_text()), json.loads(got.read_text())
    unknown = set(have) - set(want)
    if unknown:
        sys.exit(f"not in the reference: {sorted(unknown)[:5]}")
    kinds, count, worst, decided, mean = {}, dict.fromkeys(VERDICTS, 0), (0.0, ""), 0, []
    for name, token in have.items():
        w, file = want[name], got.parent / f"{name}.npy"
        verdict = ("clear errors" if token is None else "right" if token == w["next"] else
                   "near ties" if w["margin"] < near else "WRONG")
        count[verdict] += 1
        kinds.setdefault(name.split("-")[0], dict.fromkeys(VERDICTS, 0))[verdict] += 1
        error = None
        if token is not None and file.exists():
            errors = np.abs(np.load(file).astype(np.float64) - np.load(reference / file.name))
            error = errors.max()
            mean.append(errors.mean())
            worst = max(worst, (error, name))
            decided += bool(w["margin"] > 2 * error)
            if w["margin"] > 2 * error and verdict != "right":
                print(f"beyond its error: {name}")
        if verdict in ("near ties", "WRONG"):
            of = "" if error is None else f", greatest error {error:.4f}"
            print(f"{verdict}: {name}: {token} for {w['next']}, margin {w['margin']:.4f}{of}")
    for kind, verdicts in kinds.items():
        print(f"{kind}: " + ", ".join(f"{n} {verdict}" for verdict, n in verdicts.items()))
    print(", ".join(f"{n} {verdict}" for verdict, n in count.items()), f"of {len(have)}; {len(want) - len(have)} not compared")
    if mean:
        print(f"logits of {len(mean)} prompts: greatest error {worst[0]:.5f} ({worst[1]}), mean {np.mean(mean):.6f}; "
              f"the margin is above twice the error in {decided}")
    return count["WRONG"] == 0 and len(have) > 0


def greedy(reference, got, near):
    answers, have = json.loads(reference.read_text())["answers"], json.loads(got.read_text())
    if len(have) != len(answers):
        sys.exit(f"{len(have)} answers, expected {len(answers)}, null for those not asked for")
    good = True
    for answer, tokens in zip(answers, have):
        if tokens is None:
            continue
        want, margins = answer["new_ids"], answer["margin_to_second"]
        at = next((k for k, (a, b) in enumerate(zip(want, tokens)) if a != b), min(len(want), len(tokens)))
        if at == min(len(want), len(tokens)):
            verdict = f"all {at} tokens"
        elif margins[at] < near:
            verdict = f"{at} of {len(want)} tokens, then a near tie (margin {margins[at]:.4f})"
        else:
            verdict, good = f"WRONG at token {at}: {tokens[at]} for {want[at]}, margin {margins[at]:.4f}", False
        print(f"{answer['question']!r}: {verdict}")
    return good and any(tokens is not None for tokens in have)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["text", "adversarial", "greedy"])
    parser.add_argument("reference", type=pathlib.Path)
    parser.add_argument("got", type=pathlib.Path)
    parser.add_argument("--near", type=float, default=0.1)
    args = parser.parse_args()
    sys.exit(0 if globals()[args.kind](args.reference, args.got, args.near) else 1)


if __name__ == "__main__":
    main()
