"""The package on a trained model of half a million parameters, between three processes.

Run with ``python -m unittest`` where the package is installed; `OMBRA_DATA` names the folder with the models.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import unittest

import numpy as np

import ombra

MODELS = pathlib.Path(os.environ["OMBRA_DATA"]) / "llama-trained"
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def folder_of(model, root):
    folder = root / model
    folder.mkdir()
    shutil.copy(MODELS / model / "model.onnx", folder)
    shutil.copy(MODELS / "tokenizer.json", folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


class Package(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.root = pathlib.Path(cls.temporary.name)
        model, base = folder_of("frozen", cls.root), folder_of("base", cls.root)
        cls.heard = []
        progress = lambda row, part: cls.heard.append((row, part))
        cls.out = cls.root / "out"
        cls.report = ombra.compile(model, base=base, output=cls.out, self_test=16, progress=progress)
        cls.client = ombra.Client(cls.out)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        del cls.client
        cls.temporary.cleanup()

    def test_the_report_and_the_progress_of_compiling(self):
        self.assertEqual(self.report["bounds"]["assumed"], 0)
        self.assertEqual(self.report["weights"]["private"], 20)
        self.assertTrue(self.heard and all(0 <= part <= 1 for _, part in self.heard))

    def test_costs(self):
        short, long = (ombra.inspect(self.out, seq=seq) for seq in (8, 64))
        self.assertEqual((short["dims"]["seq"], long["dims"]["seq"]), (8, 64))
        self.assertLess(short["bytes"]["helper"], long["bytes"]["helper"])

    def test_an_answer_comes_piece_by_piece(self):
        events = []
        answer = self.client.generate("The value of", max_tokens=12, progress=events.append)
        pieces = list(answer)
        self.assertEqual("".join(pieces), answer.text)
        self.assertEqual(len(answer.tokens), 12)
        self.assertEqual(answer.finish_reason, "length")
        steps = [event for event in events if event["event"] == "step"]
        self.assertEqual([step["name"] for step in steps], ["prefill"] + 11 * ["decode"])
        self.assertTrue(all(step["rounds"] > 0 and step["bytes"]["helper"] > 0 for step in steps))
        # The same text as a chat and as tokens gives the same answer; a stop string ends it before itself.
        self.assertEqual(self.client.generate("The value of", max_tokens=12).result(), answer.text)
        chat = self.client.chat([{"role": "user", "content": "The value of"}], max_tokens=12)
        self.assertEqual(chat.result(), answer.text)
        stop = answer.text[2:5]
        stopped = self.client.generate("The value of", max_tokens=12, stop=stop)
        self.assertEqual(stopped.result(), answer.text[: answer.text.index(stop)])
        self.assertEqual(stopped.finish_reason, "stop")

    def test_an_answer_ends_when_nobody_wants_it(self):
        answer = self.client.generate("The value of", max_tokens=60)
        next(answer)
        answer.cancel()
        answer.result()
        self.assertLess(len(answer.tokens), 60)
        self.assertEqual(len(self.client.generate("If", max_tokens=3).result()) > 0, True)

    def test_tokens_can_be_drawn(self):
        answer = self.client.generate([1, 2, 3], max_tokens=4, temperature=1.0, top_k=5)
        answer.result()
        self.assertEqual(len(answer.tokens), 4)
        with self.assertRaises(ValueError):
            self.client.generate([1], top_k=5)
        with self.assertRaises(ombra.OmbraError) as raised:
            self.client.generate([1], max_tokens=1, frequency_penalty=0.5).result()
        self.assertEqual(raised.exception.code, "E0417", "the plan takes no penalties")

    def test_arrays_go_in_and_come_out(self):
        token = self.client.infer({"input_ids": np.array([[3, 1, 4, 1, 5]])})
        (name, value), = token.items()
        answer = self.client.generate([3, 1, 4, 1, 5], max_tokens=1)
        answer.result()
        self.assertEqual(value.reshape(-1).tolist(), answer.tokens)
        phase = self.client.report["phases"][-1]
        self.assertEqual(phase["rounds"]["predicted"], phase["rounds"]["measured"])

    def test_errors_are_exceptions(self):
        with self.assertRaises(ombra.OmbraError) as raised:
            self.client.generate([10**9], max_tokens=1).result()
        self.assertEqual((raised.exception.code, raised.exception.kind), ("E1006", "input"))
        self.assertTrue(raised.exception.notes)
        with self.assertRaises(ombra.OmbraError) as raised:
            ombra.compile(self.root / "nothing.onnx", output=self.root / "none")
        self.assertTrue(raised.exception.code.startswith("E"))
        with self.assertRaises(ombra.OmbraError):
            ombra.compile(self.root / "frozen", output=self.root / "none", no_such_option=1)
        with self.assertRaises(ombra.OmbraError):
            ombra.Client(self.root)
        with self.assertRaises(TypeError):
            self.client.infer({"input_ids": np.array(["text"])})

    def test_answers_are_waited_for_without_holding_others_up(self):
        ticks = []
        answer = self.client.generate("The value of", max_tokens=8)
        thread = threading.Thread(target=lambda: ticks.extend(range(1000)))
        thread.start()
        thread.join(timeout=10)
        self.assertEqual(len(ticks), 1000)
        answer.result()

    def test_the_commands_are_there(self):
        command = [sys.executable, ombra.commands.__file__, "--version"]
        self.assertIn("ombra-run", subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        # All parties and the tokenizer's process are started by it.
        program = pathlib.Path(sys.executable).with_name("ombra-run")
        command = [program, "local", self.out, "--prompt", "The value of", "-n", "3"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        self.assertEqual(said.strip(), self.client.generate("The value of", max_tokens=3).result().strip())


if __name__ == "__main__":
    unittest.main()
