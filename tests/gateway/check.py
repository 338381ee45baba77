"""The gateway between three processes, asked by OpenAI's client, by curl and by a browser.

Usage: check.py FOLDER, with `ombra` and `ombra-run` in FOLDER. Ends with an error at the first check that fails.
"""

import contextlib
import io
import json
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time

import openai
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

MODELS = pathlib.Path(__file__).parent.parent / "data" / "models" / "llama-trained"
# Writes a chat as the prompt that `eval.json` has an answer to.
START = "<s>"
TEMPLATE = START + "{% for message in messages %}{{ message.content }}{% endfor %}"
PROMPT = "The value of the"
TOKENS = 10
# Slow enough to watch, and to hang up in the middle.
NETWORK = "1Gbps,1ms"
BROWSER = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1200,900",
    # A name that somebody else made point to this machine.
    "--host-resolver-rules=MAP rebound.example 127.0.0.1",
]


def wait(what, check, seconds=60):
    """Waits until `check` holds."""
    end = time.monotonic() + seconds
    while not (value := check()):
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.02)
    return value


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def configure(programs, folder):
    """Keys and configurations of the three parties."""
    parties = ["client", "server", "helper"]
    prints = {
        party: subprocess.run(
            [programs / "ombra-run", "keygen", "--party", party, "-o", folder / party],
            check=True, capture_output=True, text=True,
        ).stdout.strip()
        for party in parties
    }
    ports = {"server": free_port(), "helper": free_port()}
    for party in parties:
        lines = [f'party = "{party}"', 'key = "key.pem"', 'certificate = "cert.pem"']
        if party in ports:
            lines.append(f'listen = "127.0.0.1:{ports[party]}"')
        for peer in parties:
            if peer != party:
                lines.append(f'[peers.{peer}]\nfingerprint = "{prints[peer]}"')
                # Of two parties the earlier one connects to the later one.
                if parties.index(party) < parties.index(peer):
                    lines.append(f'address = "127.0.0.1:{ports[peer]}"')
        (folder / party / "party.toml").write_text("\n".join(lines))


@contextlib.contextmanager
def process(arguments, errors):
    """A process that says `ready` on its first line, ended with the block."""
    with open(errors, "w") as log:
        running = subprocess.Popen(list(map(str, arguments)), stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        line = running.stdout.readline()
        assert line.startswith("ready"), (line, pathlib.Path(errors).read_text())
        yield line.split()[-1]
    finally:
        running.kill()
        running.wait()


def check_client(base, expected):
    """OpenAI's Python client: whole answers, pieces, usage, errors, hanging up."""
    client = openai.OpenAI(base_url=base + "v1", api_key="unused", max_retries=0, timeout=120)
    assert [model.id for model in client.models.list()] == ["ombra"]
    asked = {"model": "ombra", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": TOKENS}
    whole = client.chat.completions.create(**asked)
    text = whole.choices[0].message.content
    assert text == expected, text
    assert whole.choices[0].finish_reason == "length"
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (8, TOKENS), whole.usage

    pieces = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    parts = [piece.choices[0].delta.content for piece in pieces if piece.choices and piece.choices[0].delta.content]
    assert "".join(parts) == expected and len(parts) >= TOKENS // 2, parts
    assert pieces[-1].usage.completion_tokens == TOKENS and pieces[-1].usage.prompt_tokens_details.cached_tokens == 7

    # The next turn of that chat costs its own tokens.
    turns = asked["messages"] + [{"role": "assistant", "content": text}, {"role": "user", "content": " by the"}]
    second = client.chat.completions.create(model="ombra", messages=turns, max_completion_tokens=1)
    assert second.usage.prompt_tokens_details.cached_tokens >= 8, second.usage

    old = client.completions.create(model="ombra", prompt=START + PROMPT, max_tokens=TOKENS, temperature=0)
    assert old.choices[0].text == expected
    drawn = client.chat.completions.create(**{**asked, "max_tokens": 3}, temperature=1.0, top_p=0.9)
    assert drawn.usage.completion_tokens == 3 and drawn.choices[0].message.content
    # Another way to choose tokens keeps what the session has.
    assert drawn.usage.prompt_tokens_details.cached_tokens >= 7, drawn.usage
    penalised = client.chat.completions.create(**asked, presence_penalty=2, frequency_penalty=2)
    assert penalised.usage.completion_tokens == TOKENS and penalised.usage.prompt_tokens_details.cached_tokens >= 7
    assert penalised.choices[0].message.content != expected
    stopped = client.chat.completions.create(**asked, stop=["General"])
    assert stopped.choices[0].message.content == expected.split("General")[0]
    assert stopped.choices[0].finish_reason == "stop"

    def refused(kind, code, **fields):
        try:
            client.chat.completions.create(**{**asked, **fields})
        except kind as error:
            assert error.code == code, error
            assert PROMPT not in str(error)
        else:
            raise AssertionError(f"{fields} was answered")

    refused(openai.BadRequestError, "unsupported_value", n=2)
    refused(openai.BadRequestError, "context_length_exceeded", messages=[{"role": "user", "content": PROMPT * 500}])
    refused(openai.NotFoundError, "model_not_found", model="another")
    with client.chat.completions.create(**{**asked, "max_tokens": 200}, stream=True) as stream:
        next(stream)
    # Whoever comes next does not wait for 200 tokens.
    assert client.chat.completions.create(**{**asked, "max_tokens": 1}).choices[0].finish_reason == "length"
    print("client: passed")


def check_curl(base, expected):
    """curl, as the documents have it."""
    body = {"model": "ombra", "stream": True, "max_tokens": TOKENS, "messages": [{"role": "user", "content": PROMPT}]}
    curl = ["curl", "-sSN", base + "v1/chat/completions", "-H", "Content-Type: application/json", "-d"]
    lines = subprocess.run([*curl, json.dumps(body)], check=True, capture_output=True, text=True).stdout.splitlines()
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert events[-1] == "[DONE]", events
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events[:-1]]
    assert "".join(delta.get("content", "") for delta in deltas) == expected, deltas
    foreign = subprocess.run([*curl, "{}", "-H", "Origin: null"], check=True, capture_output=True, text=True).stdout
    assert json.loads(foreign)["error"]["code"] == "forbidden_origin", foreign
    print("curl: passed")


def check_page(base, expected, folder):
    """The page in a browser: a chat, numbers that move meanwhile, nothing from elsewhere."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in [*BROWSER, f"--user-data-dir={folder / 'profile'}"]:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.get(base)

        def text(name):
            return driver.find_element(By.ID, name).text

        def moves():
            read = "return ['sent', 'rounds', 'total-tokens'].map((id) => document.getElementById(id).textContent)"
            return tuple(driver.execute_script(read))

        def answer():
            return driver.execute_script("return document.querySelector('#turns .assistant')?.textContent ?? ''").strip()

        wait("the page is connected", lambda: text("phase") not in ["not connected", ""])
        prompt = driver.find_element(By.ID, "prompt")
        prompt.send_keys(PROMPT)
        prompt.send_keys(Keys.ENTER)
        stop = driver.find_element(By.ID, "stop")
        wait("it asks", stop.is_enabled)
        seen = [moves()]
        picture = None
        begun = expected.strip()
        while stop.is_enabled() and (picture is None or not answer().startswith(begun)):
            if (now := moves()) != seen[-1]:
                seen.append(now)
            if picture is None and text("phase") == "making a token":
                picture = driver.get_screenshot_as_png()
        # Within one token, more than one value of bytes and of rounds.
        token = max({row[2] for row in seen}, key=lambda token: sum(row[2] == token for row in seen))
        for column in [0, 1]:
            assert len({row[column] for row in seen if row[2] == token}) >= 2, seen
        assert picture, seen
        driver.execute_script("document.getElementById('stop').click()")
        wait("it ends", lambda: not stop.is_enabled())
        turns = [turn.text.strip() for turn in driver.find_elements(By.CSS_SELECTOR, "#turns li")]
        assert turns[0] == PROMPT and turns[1].startswith(begun), turns
        assert text("error") == ""

        # The picture has something on it, and the parts stand beside one another.
        image = Image.open(io.BytesIO(picture)).convert("RGB")
        colours = image.getcolors(1 << 24)
        assert image.size[0] >= 1000 and len(colours) > 50, len(colours)
        assert max(count for count, _ in colours) < 0.98 * image.size[0] * image.size[1]
        boxes = {name: driver.find_element(By.ID, name).rect for name in ["chat", "work", "turns", "ask"]}
        assert all(box["width"] > 150 and box["height"] > 50 for box in boxes.values()), boxes
        assert boxes["chat"]["x"] + boxes["chat"]["width"] <= boxes["work"]["x"] + 1, boxes

        fetched = driver.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert fetched and all(name.startswith(base) for name in fetched), fetched
        complaints = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
        assert not complaints, complaints
        # No script that is not the gateway's own runs, and no name but this machine's own is answered to.
        run = "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.head.append(s);"
        assert driver.execute_script(run + "return window.ran === undefined")
        driver.get(base.replace("127.0.0.1", "rebound.example"))
        assert "forbidden_host" in driver.page_source, driver.page_source
    finally:
        driver.quit()
    print("page: passed")


def main():
    programs = pathlib.Path(sys.argv[1]).resolve()
    answers = json.loads((MODELS / "base" / "eval.json").read_text())["greedy"]
    (full,) = [answer["text"] for answer in answers if answer["prompt"] == PROMPT]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        model, out = folder / "model", folder / "out"
        model.mkdir()
        shutil.copy(MODELS / "base" / "model.onnx", model)
        shutil.copy(MODELS / "tokenizer.json", model)
        (model / "chat_template.jinja").write_text(TEMPLATE)
        subprocess.run([programs / "ombra", "compile", model, "--penalties", "-o", out], check=True, capture_output=True)
        configure(programs, folder)

        def party(command, plan, name, *more):
            config = folder / name / "party.toml"
            return process(
                [programs / "ombra-run", *command, out / plan, "--config", config, "--threads", "1",
                 "--network", NETWORK, *more],
                folder / name / "errors",
            )

        with (
            party(["serve", "--party", "helper"], "public", "helper"),
            party(["serve", "--party", "server"], "", "server"),
            party(["gateway"], "public", "client", "--listen", "127.0.0.1:0") as base,
        ):
            # What ten tokens say, by OpenAI's client once the first answer is known to begin the reference's.
            client = openai.OpenAI(base_url=base + "v1", api_key="unused", timeout=120)
            first = client.completions.create(model="ombra", prompt=START + PROMPT, max_tokens=TOKENS).choices[0].text
            assert full.startswith(first) and len(first) > TOKENS, (first, full)
            check_client(base, first)
            check_curl(base, first)
            check_page(base, first, folder)
        errors = (folder / "client" / "errors").read_text()
        assert errors == "", errors


main()
