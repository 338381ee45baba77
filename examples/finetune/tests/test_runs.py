"""Whole runs on the small model: teacher, every student and ablation, exports, the compiler."""

import dataclasses
import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ombra_finetune import card, cli, costs, export, heads, onnx_files, parts, private, score, stored, students, train
from ombra_finetune.config import SettingsError

STUDENTS = {
    "frozen": dict(private_layers=2),
    "lora": dict(train="lora", lora_rank=4),
    "frozen-lora": dict(train="lora", lora_rank=4, private_layers=2),
    "merged": dict(merge=3, init="full", steps_one=6),
    "merged-2": dict(private_layers=2, merge=2, init="frozen", steps_one=4, groups_from="public", skip_first=True),
    "frozen-merged-2relu": dict(private_layers=2, merge=3, softmax="2relu", init="frozen", steps_one=6, balance=True),
    "adjacent": dict(private_layers=2, merge=3, groups="adjacent", init="frozen", steps_one=4),
    "relu": dict(private_layers=2, activation="relu", softmax="2relu", init="frozen", steps_one=4),
    "affine": dict(private_layers=2, norm="affine", init="frozen", steps_one=2, affine_steps=2, affine_share=0.3),
    "pruned-heads": dict(private_layers=2, prune_heads=3, init="frozen", steps_one=4),
    "pruned-layers": dict(drop_layers=2),
    "private-head": dict(private_layers=1, private_head=True),
}
TENSORS = {
    "full": (0, 39),
    "frozen": (20, 19),
    "lora": (39, 56),
    "frozen-lora": (39, 28),
    "merged": (2, 37),
    "private-head": (28, 11),
}
"""Public and private tensors of some students. The tied embedding stands in a file twice: as a table, and turned round."""


@pytest.fixture(scope="module")
def runs(settings_of):
    """All runs, done once."""
    reports = {
        "base": train.run(settings_of("base", train="nothing")),
        "full": train.run(settings_of("full", train="all", steps=60, valid_every=20, valid_count=16)),
    }
    for name, changes in STUDENTS.items():
        reports[name] = train.run(settings_of(name, teacher="full", **changes))
    return reports


def test_full_tuning_gains(runs):
    assert runs["full"]["test"]["nll"] < 0.8 * runs["base"]["test"]["nll"]
    assert runs["full"]["curve"][-1][2] < runs["full"]["curve"][0][2]
    assert len(runs["full"]["checks"]) == 2


def test_students_train_what_is_private_and_nothing_else(runs, settings_of):
    base = parts.load_model(settings_of("x").model)
    whole = sum(p.numel() for p in base.parameters())
    assert runs["full"]["trained"] == whole
    layer = sum(p.numel() for p in base.model.layers[0].parameters())
    assert runs["frozen"]["trained"] == 2 * layer + 96
    assert runs["merged"]["trained"] == 4 * layer + 96
    assert runs["lora"]["trained"] == 2 * runs["frozen-lora"]["trained"]
    assert runs["pruned-heads"]["trained"] == runs["frozen"]["trained"] - 2 * 2 * 4 * 16 * 96
    for name in STUDENTS:
        settings = settings_of(name, teacher="full", **STUDENTS[name])
        assert students.public_differs(students.finished(settings), settings) == [], name


def test_stages_bring_students_nearer(runs):
    for name in ("merged", "frozen-merged-2relu"):
        terms = runs[name]["stage_one_terms"]
        assert sum(terms["last"]) < sum(terms["first"]), name
    assert runs["frozen-merged-2relu"]["stage_one_terms"]["first"] == pytest.approx([1.0, 1.0])
    assert set(runs["affine"]["norms"]) == {
        "final",
        *(f"{layer}.{n}_layernorm" for layer in (2, 3) for n in ("input", "post_attention")),
    }


def test_a_stopped_run_ends_as_if_it_had_not_been(runs, settings_of):
    changes = dict(private_layers=2, merge=3, init="frozen", teacher="full", steps_one=4, balance=True, save_every=3)
    whole, parted = settings_of("whole", **changes), settings_of("parted", **changes)
    expected = train.run(whole)
    for stop in (2, 5):
        with pytest.raises(train.Stopped):
            train.run(parted, stop_after=stop)
    with pytest.raises(SettingsError, match="other settings"):
        train.run(dataclasses.replace(parted, seed=2))
    found = train.run(parted)
    one, two = (load_file(s.folder / "weights.safetensors") for s in (whole, parted))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert found["curve"] == expected["curve"] and found["test"] == expected["test"]
    with pytest.raises(SettingsError, match="has ended"):
        train.run(parted)


def test_what_a_teacher_says_is_asked_once(runs, settings_of, monkeypatch):
    plain = train.run(settings_of("asked", teacher="full", private_layers=1))
    first = train.run(settings_of("first", teacher="full", private_layers=1, store_teacher=True))
    assert first["test"]["nll"] == pytest.approx(plain["test"]["nll"], abs=1e-4)
    kept = settings_of("full").folder / stored.FILE
    before = kept.read_bytes()
    monkeypatch.setattr(stored.Answers, "compute", lambda _, rows: pytest.fail("asked again") if rows else None)
    again = train.run(settings_of("again", teacher="full", private_layers=1, store_teacher=True))
    assert again["curve"] == first["curve"] and kept.read_bytes() == before
    monkeypatch.undo()
    settings = settings_of("other", teacher="full", private_layers=1)
    teacher = train.load_teacher(settings, torch.device("cpu"))
    assert stored.Answers(teacher, kept.parent, torch.device("cpu"), bf16=True).states == {}
    with pytest.raises(SettingsError, match="expected teacher"):
        settings_of("none", store_teacher=True)


@pytest.mark.parametrize("name", ["full", "frozen", "lora", "frozen-lora", "merged", "private-head"])
def test_files_hold_what_is_public_and_what_is_private(runs, settings_of, name, tmp_path):
    changes = STUDENTS.get(name, dict(train="all"))
    settings = settings_of(name, teacher="full" if name in STUDENTS else "", **changes)
    student = students.finished(settings)
    base = export.base_folder(settings) / "model.onnx"
    model = onnx_files.export(student.decoder, tmp_path)
    _, public, private = export.check_public(student, settings, model, base)
    assert (public, private) == TENSORS[name]
    tokens = [1, 4, 9, 30, 41, 17, 5, 60]
    assert onnx_files.agrees(model, student.decoder, tokens) < 1e-4
    if student.public():
        with torch.no_grad():
            next(iter(student.public().values())).add_(1e-6)
        with pytest.raises(export.ExportError, match="not the base's"):
            export.check_public(student, settings, model, base)


@pytest.mark.parametrize("base, factor", [("base", 2), ("base", 3), ("grouped", 3)])
def test_a_merged_student_is_what_the_compiler_merges(settings_of, world, base, factor, tmp_path):
    settings = settings_of("like", model=str(world / base), private_layers=2, merge=factor)
    student = students.begin(settings)
    rows, _ = train.read_rows(settings, student)
    structure = train.analyse(settings, student, rows["train"])
    assert structure.groups.keys() == {2, 3} and all(len(g) == factor for g in structure.groups[2])
    plain = onnx_files.export(student.decoder, tmp_path / "plain")
    calibration = []
    for number, row in enumerate(rows["train"][: heads.CALIBRATION]):
        np.savez(tmp_path / f"{number}.npz", input_ids=np.array([row.prompt + row.answer]))
        calibration += ["--calibrate", str(tmp_path / f"{number}.npz")]
    names = ["--public", "*", "--private", "*layers.2.*", "--private", "*layers.3.*"]
    merged = tmp_path / "merged.onnx"
    costs.call(settings.ombra, "merge-heads", str(plain), *names, *calibration, "--factor", str(factor), "-o", str(merged))
    tokens = list(rows["test"][0].prompt + rows["test"][0].answer)
    before = student.decoder(input_ids=torch.tensor([tokens])).logits[0].detach().numpy()
    student = students.change(settings, student, structure)
    after = student.decoder(input_ids=torch.tensor([tokens])).logits[0].detach().numpy()
    assert abs(after - before).max() > 1e-3, "merging changes the model"
    assert abs(after - onnx_files.logits(merged, tokens)).max() < 1e-4


@pytest.mark.parametrize("name", ["frozen", "frozen-merged-2relu", "relu", "pruned-heads", "affine", "lora"])
def test_students_compile(runs, settings_of, name, monkeypatch):
    monkeypatch.setattr(costs, "LENGTHS", (16, 64))
    settings = settings_of(name)
    found = export.export(settings.runs, name, settings.ombra, ("base", "full"))
    assert set(found.costs) | set(found.refused) == set(costs.SETTINGS) and "3pc" in found.costs
    shown = (settings.folder / "card.md").read_text()
    assert f"{found.private_tensors} tensors" in shown and "| 3pc | 64 |" in shown
    assert all(e[step]["seconds"] > 0 for entries in found.costs.values() for e in entries for step in ("prompt", "token"))
    assert len((settings.folder / "onnx" / "plan-3pc.txt").read_text()) > 200
    assert (settings.folder / "onnx" / "tokenizer.json").is_file()
    assert json.loads((settings.folder / "onnx" / "generation_config.json").read_text())["eos_token_id"] == 2


def test_a_private_run_is_compared(runs, settings_of, monkeypatch):
    settings = settings_of("frozen")
    if not (settings.folder / "onnx" / "plan-3pc").is_dir():
        monkeypatch.setattr(costs, "LENGTHS", (16, 64))
        export.export(settings.runs, "frozen", settings.ombra)
    found = private.run(settings.runs, "frozen", os.environ["OMBRA_RUN"], 20, 6)
    assert found["equal"] and found["as_predicted"] and 1 <= len(found["tokens"]) <= 6
    assert [one["name"] for one in found["phases"][:2]] == ["setup", "prefill"]
    assert "as in the clear" in private.told(found) and "NOT" not in private.told(found)
    told = dict(found["phases"][1], bytes={"client": {"predicted": 5, "measured": 6}}, offline_bytes={})
    told["rounds"] = {"predicted": 2, "measured": 2}
    assert private.phase(told)["as_predicted"] is False and private.phase(told)["bytes"] == 6


def test_greedy_tokens_of_a_file_are_those_of_generate(runs, settings_of, tmp_path):
    settings = settings_of("full", train="all")
    student = students.finished(settings)
    model = onnx_files.export(student.decoder, tmp_path)
    rows, end = train.read_rows(settings, student)
    row = private.nearest(rows["test"], 20)
    assert all(abs(len(row.prompt) - 20) <= abs(len(other.prompt) - 20) for other in rows["test"])
    tokens, margins = private.greedy(model, row.prompt, len(row.answer) + 1, [end])
    assert tuple(tokens) == score.generated(student.decoder, row, end, torch.device("cpu"))
    assert len(margins) == len(tokens) and min(margins) >= 0


def test_merging_and_2relu_save(runs, settings_of):
    """Of what the students before were compiled to: fewer bytes, and rounds with 2ReLU."""
    cost = {}
    for name in ("frozen", "frozen-merged-2relu"):
        file = settings_of(name).folder / "export.json"
        cost[name] = json.loads(file.read_text())["costs"]["3pc"][-1]["prompt"]
    assert cost["frozen-merged-2relu"]["bytes"] < 0.8 * cost["frozen"]["bytes"]
    assert cost["frozen-merged-2relu"]["rounds"] < cost["frozen"]["rounds"]


def test_an_exported_file_that_lost_a_public_weight_is_refused(runs, settings_of, tmp_path):
    settings = settings_of("frozen", teacher="full", **STUDENTS["frozen"])
    student = students.finished(settings)
    with pytest.raises(export.ExportError, match="is not in"):
        other = onnx_files.export(students.finished(settings_of("full", train="all")).decoder, tmp_path)
        export.check_public(student, settings, other, export.base_folder(settings) / "model.onnx")


def test_groups_of_other_layers_are_refused(tmp_path):
    file = tmp_path / "groups.json"
    file.write_text(json.dumps({"layers": [{"layer": 2, "groups": [[0, 1]]}, {"layer": 3, "groups": [[0, 1]]}]}))
    assert heads.read_groups(file, [2, 3]) == {2: ((0, 1),), 3: ((0, 1),)}
    for layers in ([1, 2], [3]):
        with pytest.raises(SettingsError, match="groups of"):
            heads.read_groups(file, layers)


def test_heads_that_give_nothing_are_pruned_first(settings_of):
    settings = settings_of("x", private_layers=1, prune_heads=2)
    student = students.begin(settings)
    with torch.no_grad():
        student.decoder.model.layers[3].self_attn.o_proj.weight[:, : 3 * 16] = 0
    rows, _ = train.read_rows(settings, student)
    assert heads.important(settings, student, rows["train"]) == {3: (3, 4, 5)}


def test_a_teacher_of_other_data_is_refused(runs, settings_of):
    with pytest.raises(SettingsError, match="other data"):
        train.load_teacher(settings_of("x", teacher="full", data="elsewhere"), torch.device("cpu"))


def test_weights_that_do_not_fit_are_refused(runs, settings_of):
    student = students.begin(settings_of("x", private_layers=1))
    with pytest.raises(SettingsError, match="do not fit"):
        student.load(settings_of("frozen").folder / "weights.safetensors")


def test_the_table_and_the_commands(runs, settings_of, world, capsys, monkeypatch):
    names = ["base", "full", "frozen", "frozen-merged-2relu"]
    shown = card.table(world / "runs", names, "base", "full")
    assert all(f"| `{name}` |" in shown for name in names) and "Predicted in `3pc`" in shown
    monkeypatch.setattr("sys.argv", ["ombra-finetune", "table", "base", "missing", "--runs", str(world / "runs")])
    with pytest.raises(SystemExit):
        cli.main()
    assert "missing" in capsys.readouterr().err
    settings = settings_of("dry", private_layers=2, merge=3)
    options = [
        f"--{name.replace('_', '-')}={getattr(settings, name)}" for name in ("model", "data", "runs", "ombra", "merge")
    ]
    command = ["ombra-finetune", "train", *options, "--private-layers=2", "--dry-run", "--prompt=16"]
    monkeypatch.setattr("sys.argv", command)
    cli.main()
    said = capsys.readouterr().out
    assert "private layers: 2, 3 of 4" in said and "layers 0 to 1, which the client runs" in said
    assert said.count("ombra advise") == len(costs.SETTINGS) and not (world / "runs" / "dry").exists()
