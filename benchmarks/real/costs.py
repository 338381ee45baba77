"""What compiled plans cost between three processes of this machine: a prefill of 64 tokens and the tokens after it.

    python3 costs.py PLAN_FOLDER...

Runs every plan `--runs` times and prints medians of the seconds; bytes and rounds, which every run has alike, predicted and
measured; and the greatest resident memory of every party, mapped files included. Reports go to PLAN_FOLDER/costs-K.json.
"""
import argparse, json, os, pathlib, statistics, subprocess

# A conversation of SmolLM2-135M-Instruct, cut at 64 tokens.
TOKENS = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2, 198,
          1, 4093, 198, 19161, 582, 6330, 563, 260, 3426, 30, 2, 198, 1, 520, 9531, 198, 504, 3426, 314, 253, 4749, 284,
          11965, 7815, 28, 30055, 351, 1029, 284, 551, 1719, 281, 624, 1038, 970, 28, 253, 21651, 288, 260, 551, 1719, 6122]
assert len(TOKENS) == 64


def size(count):
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count} B"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", type=pathlib.Path, nargs="+")
    parser.add_argument("--run", default="target/release/ombra-run", help="the runtime")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="tokens to generate")
    args = parser.parse_args()
    for plan in args.plans:
        reports = []
        for k in range(args.runs):
            file = plan / f"costs-{k}.json"
            subprocess.run([args.run, "local", str(plan), "--tokens", ",".join(map(str, TOKENS)), "-n", str(args.steps),
                            "--report", str(file)], check=True, stdout=subprocess.DEVNULL)
            reports.append(json.loads(file.read_text()))
        print(f"{plan}: load of the machine now {os.getloadavg()[0]:.1f}, plan {reports[0]['plan_digest'][:12]}")
        for index, phase in enumerate(reports[0]["phases"]):
            phases = [report["phases"][index] for report in reports]
            for other in phases:
                counts = [other["rounds"], *other["bytes"].values()]
                assert all(count["predicted"] == count["measured"] for count in counts), "predicted is not measured"
                assert (other["rounds"], other["bytes"]) == (phase["rounds"], phase["bytes"]), "runs differ"
            seconds = [round(other["seconds"], 2) for other in phases]
            sent = {party: count["measured"] for party, count in sorted(phase["bytes"].items())}
            print(f"  {phase['name']} {phase['dims']}: {statistics.median(seconds)} s {seconds}, "
                  f"{phase['rounds']['measured']} rounds, {size(sum(sent.values()))} = {sum(sent.values())} B ("
                  + ", ".join(f"{party} {size(count)}" for party, count in sent.items()) + "), as predicted")
        for party in sorted(reports[0]["peak_rss_bytes"]):
            print(f"  memory of the {party}: {size(max(report['peak_rss_bytes'][party] for report in reports))}")


if __name__ == "__main__":
    main()
