#!/usr/bin/env python3
"""Tokens a second of clients side by side, or memory of the serving parties after many sessions.

Usage: benchmarks/clients.py PROGRAMS MODEL FOLDER            for tokens a second
       benchmarks/clients.py PROGRAMS MODEL FOLDER SESSIONS KILLED    for memory after so many, eight at a time
PROGRAMS holds `ombra` and `ombra-run`, MODEL is an ONNX file, FOLDER gets the plan and the keys.
Server, helper and clients are processes of this machine over emulated links of 1 Gbit/s and 2 ms. A rate is the sum, over
the clients, of new tokens by the seconds of their steps, the prompt's aside; the client processes begin together.
"""

import json
import pathlib
import random
import re
import shutil
import socket
import subprocess
import sys
import time

NETWORK = "1Gbps,2ms"
PROMPT = ",".join(str(3 + 7 * index % 90) for index in range(16))
TOKENS = 33


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def configure(run, folder):
    names = ["client", "server", "helper"]
    pins = {}
    for name in names:
        shutil.rmtree(folder / name, ignore_errors=True)
        keygen = [run, "keygen", "--party", name, "-o", folder / name]
        pins[name] = subprocess.run(keygen, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    ports = dict(zip(names, free_ports(3)))
    for at, name in enumerate(names):
        text = f'party = "{name}"\nkey = "key.pem"\ncertificate = "cert.pem"\n'
        if name != "client":
            text += f'listen = "127.0.0.1:{ports[name]}"\n'
        for peer in names:
            if peer != name:
                text += f'[peers.{peer}]\nfingerprint = "{pins[peer]}"\n'
                if names.index(peer) > at:
                    text += f'address = "127.0.0.1:{ports[peer]}"\n'
        if name != "client":
            text += "[limits]\nmax_sessions = 64\n"
        (folder / name / "party.toml").write_text(text)


def serve(run, plan, folder, name):
    command = [run, "serve", plan, "--party", name, "--config", folder / name / "party.toml", "--network", NETWORK]
    log = open(folder / f"{name}.log", "w")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout.readline().startswith("ready"), (folder / f"{name}.log").read_text()
    return process


def client(run, plan, folder, number, tokens):
    command = [run, "generate", plan, "--config", folder / "client" / "party.toml", "--tokens", PROMPT, "-n", str(tokens)]
    command += ["--network", NETWORK, "--threads", "1", "--report", folder / f"report-{number}.json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def memory(process):
    text = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", text).group(1)) / 1024


def side_by_side(run, plan, folder, count):
    begin = time.time()
    clients = [client(run, plan, folder, number, TOKENS) for number in range(count)]
    answers = {process.communicate()[0] for process in clients}
    assert all(process.returncode == 0 for process in clients) and len(answers) == 1, answers
    wall = time.time() - begin
    rate = 0
    for number in range(count):
        phases = json.loads((folder / f"report-{number}.json").read_text())["phases"]
        seconds = [phase["seconds"] for phase in phases if phase["name"] == "decode"]
        rate += len(seconds) / sum(seconds)
    return rate, count * TOKENS / wall


def rates(run, plan, folder):
    print("clients  tokens/s  of one  tokens/s with start and prompt")
    one = None
    for count in (1, 2, 4, 8):
        rate, whole = max(side_by_side(run, plan, folder, count) for _ in range(3))
        one = one or rate
        print(f"{count:7}  {rate:8.2f}  {rate / one:5.2f}x  {whole:8.2f}", flush=True)


def memory_after(run, plan, folder, parties, label, total):
    chance = random.Random(1)
    print(f"before {total} {label}: helper, server {[round(memory(p), 1) for p in parties]} MB", flush=True)
    for start in range(0, total, 8):
        many = [client(run, plan, folder, number, 2) for number in range(min(8, total - start))]
        for process in many:
            if label == "killed":
                time.sleep(chance.random() * 0.3)
                process.kill()
            process.communicate()
        assert label == "killed" or all(process.returncode == 0 for process in many)
    time.sleep(3)
    print(f"after {total} {label}: helper, server {[round(memory(p), 1) for p in parties]} MB", flush=True)


def main():
    programs, model, folder = map(pathlib.Path, sys.argv[1:4])
    sessions, killed = (int(text) for text in sys.argv[4:6]) if len(sys.argv) > 4 else (0, 0)
    run, plan = programs / "ombra-run", folder / "plan"
    folder.mkdir(parents=True, exist_ok=True)
    if not plan.exists():
        subprocess.run([programs / "ombra", "compile", model, "-o", plan], check=True, stdout=subprocess.PIPE)
    configure(run, folder)
    parties = [serve(run, plan, folder, name) for name in ("helper", "server")]
    try:
        side_by_side(run, plan, folder, 1)
        if sessions + killed == 0:
            rates(run, plan, folder)
        for label, total in (("sessions", sessions), ("killed", killed)):
            memory_after(run, plan, folder, parties, label, total)
    finally:
        for process in parties:
            process.terminate()
        print("exit status of helper and server:", [process.wait() for process in parties])


main()
