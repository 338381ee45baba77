"""Attention, losses, data and scores, each against something written out by hand."""

import dataclasses
import math
from xml.etree import ElementTree

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from ombra_finetune import affine, attention, config, data, losses, parts, plot, score, students, task, tiny
from ombra_finetune.data import Row
from ombra_finetune.score import bootstrap, gain_kept


def llama(kv_heads=6, layers=2):
    torch.manual_seed(3)
    made = LlamaConfig(
        vocab_size=64,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=6,
        num_key_value_heads=kv_heads,
        initializer_range=0.2,
        attn_implementation=attention.NAME,
    )
    model = LlamaForCausalLM(made).eval()
    for module in parts.attentions(model):
        module.ombra_heads = 6
    return model


class Holder(torch.nn.Module):
    ombra_heads = 4


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_attention_is_the_formula(relu, kv_heads):
    torch.manual_seed(1)
    groups = ((0, 3), (1, 2))
    q, k, v = torch.randn(2, 4, 3, 8), torch.randn(2, kv_heads, 5, 8), torch.randn(2, kv_heads, 5, 8)
    mask = torch.zeros(2, 1, 3, 5)
    mask[:, :, 0, 3:] = mask[:, :, 1, 4:] = torch.finfo(torch.float32).min
    module = Holder()
    attention.set_form(module, groups=groups, relu=relu)
    output, weights = attention.attention(module, q, k, v, mask, scaling=0.5)
    assert output.shape == (2, 3, 4, 8) and weights.shape == (2, 2, 3, 5)
    for group in groups:
        scores = sum(q[:, h] @ k[:, h * kv_heads // 4].transpose(1, 2) for h in group) * 0.5 / math.sqrt(2)
        if relu:
            positive = scores.clamp(min=0) * (mask[:, 0] == 0)
            shares = positive / (positive.sum(-1, keepdim=True) + 2.0**-6)
        else:
            shares = (scores + mask[:, 0]).softmax(-1)
        for h in group:
            torch.testing.assert_close(output[:, :, h], shares @ v[:, h * kv_heads // 4])


def models():
    """Small decoders of four kinds, by name."""
    gpt2 = GPT2Config(vocab_size=64, n_embd=48, n_layer=2, n_head=6, n_positions=32)
    sizes = dict(hidden_size=48, word_embed_proj_dim=48, ffn_dim=64, num_hidden_layers=2, num_attention_heads=6)
    opt = OPTForCausalLM(OPTConfig(vocab_size=64, **sizes))
    return {"llama": llama(), "grouped": llama(kv_heads=2), "gpt2": GPT2LMHeadModel(gpt2), "opt": opt}


@pytest.mark.parametrize("model", models().values(), ids=models())
def test_without_a_form_models_compute_what_they_did(model):
    model.eval()
    ids = torch.randint(5, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    model.set_attn_implementation("eager")
    with torch.no_grad():
        plain = model(input_ids=ids, attention_mask=mask).logits
        model.set_attn_implementation(attention.NAME)
        for module in parts.attentions(model):
            module.ombra_heads = 6
        torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, plain)
    assert parts.has_plain_head(model)
    holder, name = parts.final_norm(model)
    assert parts.is_norm(getattr(holder, name))
    assert len(parts.norms_of(parts.layer_list(model)[0])) == 2
    assert len(list(parts.activations(parts.layer_list(model)[0]))) == 1


@pytest.mark.parametrize("model", models().values(), ids=models())
def test_a_beginning_that_rows_share_is_computed_once(model, monkeypatch):
    model.set_attn_implementation(attention.NAME)
    for index, module in enumerate(parts.attentions(model.eval())):
        module.ombra_heads = 6
        attention.set_form(module, groups=((0, 1, 5), (2, 3, 4)), relu=index == 1)
    rows = [Row((*range(1, 10), *rest), (11, 2)) for rest in ((20, 21, 30), (20, 31), (40,))]
    batch = data.collate(rows)
    at = batch.labels != data.IGNORED
    weight = next(parts.layer_list(model)[0].parameters())
    found = []
    for least in (parts.SHARED, 99):
        monkeypatch.setattr(parts, "SHARED", least)
        assert parts.shared_prefix(batch.ids, batch.mask) == (9 if least < 99 else 0)
        with losses.Taps(model, [0, 1]) as taps:
            logits = parts.answer_logits(model, model, batch.ids, batch.mask, at)
        (gradient,) = torch.autograd.grad(logits.square().sum(), weight)
        on = batch.mask.bool()
        found.append((logits, gradient, *(kept[index][on] for kept in (taps.attention, taps.hidden) for index in (0, 1))))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4 * float(two.detach().abs().max()))


def test_no_beginning_is_shared_by_one_row_or_by_padding():
    mask = torch.ones(2, 12, dtype=torch.long)
    assert parts.shared_prefix(mask, mask) == 11
    assert parts.shared_prefix(mask[:1], mask[:1]) == 0
    mask[1, 9:] = 0
    assert parts.shared_prefix(torch.ones_like(mask), mask) == 8
    mask[1, 7:] = 0
    assert parts.shared_prefix(torch.ones_like(mask), mask) == 0


def test_kept_heads_are_those_of_a_model_whose_others_give_nothing():
    kept = (1, 4)
    model, pruned = llama(kv_heads=2), llama(kv_heads=2)
    with torch.no_grad():
        for module in parts.attentions(model):
            gate = torch.zeros(6)
            gate[list(kept)] = 1
            module.ombra_gate = gate
        for module in parts.attentions(pruned):
            students.prune(module, kept, 6)
        ids = torch.arange(1, 12)[None]
        torch.testing.assert_close(pruned(input_ids=ids).logits, model(input_ids=ids).logits)


def test_stage_one_is_the_sum_over_layers_without_padding():
    model, other = llama(), llama()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.1)
    ids = torch.arange(1, 13).reshape(2, 6)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    kept = {}
    for name, one in (("mine", model), ("theirs", other)):
        for index, layer in enumerate(one.model.layers):
            layer.self_attn.o_proj.register_forward_hook(
                lambda _, __, out, key=(name, "a", index): kept.__setitem__(key, out)
            )
            layer.register_forward_hook(lambda _, __, out, key=(name, "h", index): kept.__setitem__(key, out))
    with losses.Taps(model, [0, 1]) as mine, losses.Taps(other, [0, 1]) as theirs:
        model.model(input_ids=ids, attention_mask=mask)
        other.model(input_ids=ids, attention_mask=mask)
    for skip in (False, True):
        found = losses.stage_one(mine, theirs, mask, skip)
        for kind, value in zip("ah", found, strict=True):
            total = 0.0
            for layer in (0, 1):
                rows = [
                    (kept["mine", kind, layer][b, t] - kept["theirs", kind, layer][b, t]).pow(2).mean()
                    for b in range(2)
                    for t in range(1 if skip else 0, 6 if b == 0 else 4)
                ]
                total += sum(rows) / len(rows)
            torch.testing.assert_close(value, total)
    assert not mine.handles, "taps are removed"


def test_stage_two_is_half_divergence_and_half_likelihood():
    torch.manual_seed(0)
    mine, other, labels = torch.randn(5, 7), torch.randn(5, 7), torch.tensor([1, 0, 6, 3, 3])
    p, q = other.softmax(-1), mine.softmax(-1)
    kl = (p * (p / q).log()).sum(-1).mean()
    nll = -q[torch.arange(5), labels].log().mean()
    torch.testing.assert_close(losses.stage_two(mine, other, labels), 0.5 * kl + 0.5 * nll)
    torch.testing.assert_close(losses.stage_two(mine, None, labels), nll)


def test_labels_end_with_the_turn_though_its_token_is_the_padding(world):
    model, words = parts.load_model(world / "base"), parts.load_tokenizer(world / "base")
    end = data.end_of_turn(model, words)
    assert words.convert_ids_to_tokens(end) == "<end>"
    words.pad_token = "<end>"
    rows = data.encode(
        words, "", end, [data.Example("names def a ( b ) :", "b"), data.Example("repeat def a ( b ) :", "b , a")]
    )
    batch = data.collate(rows)
    for at, row in enumerate(rows):
        labels = batch.labels[at][batch.labels[at] != data.IGNORED].tolist()
        assert labels == list(row.answer) and labels[-1] == end
        assert int(batch.mask[at].sum()) == len(row)
        # A label is the next token.
        where = (batch.labels[at] != data.IGNORED).nonzero()[:, 0]
        assert batch.ids[at, where + 1].tolist() == labels


def test_an_end_that_the_template_does_not_write_is_refused(world):
    model, words = parts.load_model(world / "base"), parts.load_tokenizer(world / "base")
    model.generation_config.eos_token_id = words.convert_tokens_to_ids("<begin>")
    with pytest.raises(data.DataError, match="will not stop"):
        data.end_of_turn(model, words)


def test_batches_go_on_where_they_were():
    rows = [Row((1,) * (1 + n % 5), (2, n)) for n in range(50)]
    every = data.batches(rows, 4, seed=7)
    whole = [next(every) for _ in range(40)]
    later = data.batches(rows, 4, seed=7, begin=25)
    for expected in whole[25:]:
        assert torch.equal(next(later).ids, expected.ids)
    assert {int(n) for b in whole[:12] for n in b.labels[:, :].max(dim=1).values} <= set(range(50))


def test_the_small_set_is_the_same_everywhere(tmp_path):
    counts = {"train": 20, "valid": 10, "test": 10}
    assert tiny.make_set(tmp_path / "set", counts)[:16] == "3a612f9bd9220dba"
    with pytest.raises(data.DataError, match="line 1"):
        (tmp_path / "set" / "test.jsonl").write_text('{"question": 1}\n')
        data.read_part(tmp_path / "set", "test")


def test_the_task_says_what_the_header_says():
    import ast

    inside = "self, other: Frame, how='left', *rest, copy, deep=True, **more"
    text = f"@x\nasync def merge({inside.replace(', *', ',    ' + chr(10) + '*')}) -> List[int]:\n    return 1"
    (function,) = ast.parse(text).body
    assert task.header(function) == f"async def merge({inside}) -> List[int]:"
    needed, optional = task.lists(function.args)
    shown = task.answer(needed, optional, "List[int]")
    assert shown == "needs other, copy; may how, *rest, deep, **more; gives List[int]"
    assert task.answer([], [], "") == "needs -; may -; gives -"


def test_no_name_and_no_parameters_of_a_held_part_are_in_another():
    found = [task.Found(data.Example(f"q{n}", "a"), f"std/file{n}.py", f"name{n % 37}", f"a{n % 41},b") for n in range(400)]
    chosen = task.split(found, {"train": 400, "valid": 400, "test": 400})
    by = {one.example.question: one for one in found}
    held = [{text for e in chosen[part] for text in (by[e.question].name, by[e.question].parameters)} for part in data.PARTS]
    assert all(chosen[part] for part in data.PARTS)
    assert not held[0] & held[1] and not held[0] & held[2] and not held[1] & held[2]


def test_gains_and_their_intervals():
    assert gain_kept(0.7, 0.2, 0.7) == 1.0
    base, full = [0] * 50, [1] * 40 + [0] * 10
    low, high = bootstrap([1] * 20 + [0] * 30, base, full)
    assert low < 0.5 < high and high - low < 0.4
    assert bootstrap(full, base, full) == (1.0, 1.0)
    with pytest.raises(ValueError, match="different"):
        bootstrap([1], base, full)


def test_affine_maps_are_fitted_and_taken_back():
    model = llama()
    model.requires_grad_(True)
    student = students.Student(model, model, [0, 1])
    rows = [Row((3, 4, 5, 6), (7, 8)), Row((9, 10, 11), (12, 13))]
    before = {name: p.detach().clone() for name, p in student.trained().items()}
    assert affine.names(student) == [
        "final",
        "1.post_attention_layernorm",
        "1.input_layernorm",
        "0.post_attention_layernorm",
        "0.input_layernorm",
    ]

    def disturb():
        with torch.no_grad():
            next(model.parameters()).add_(1.0)

    stayed, _ = affine.substitute(student, "1.input_layernorm", rows, False, disturb, lambda: 2.0, limit=1.0)
    assert not stayed
    assert all(torch.equal(p, before[name]) for name, p in student.trained().items())
    seen = []
    model.model.layers[1].input_layernorm.register_forward_hook(lambda _, x, y: seen.append((x[0], y)))
    for row in rows:
        model(input_ids=torch.tensor([row.prompt + row.answer]))
    x, y = (torch.cat([pair[i][0] for pair in seen]).double() for i in (0, 1))
    stayed, found = affine.substitute(student, "1.input_layernorm", rows, False, lambda: None, lambda: 0.5, limit=1.0)
    assert stayed and found == 0.5
    made = model.model.layers[1].input_layernorm
    assert isinstance(made, students.Affine) and made.bias is None
    expected = torch.stack([torch.linalg.lstsq(x[:, [c]], y[:, [c]]).solution[0, 0] for c in range(48)])
    torch.testing.assert_close(made.weight.double(), expected, rtol=1e-4, atol=1e-6)


def test_settings_that_do_not_fit_are_refused(tmp_path):
    for wrong, why in [
        (dict(softmax="3relu"), "exact, 2relu"),
        (dict(steps=-1), "0 or more"),
        (dict(merge=2, prune_heads=2), "not both"),
        (dict(train="all", merge=2), "as it is"),
        (dict(steps_one=4), "stage I"),
        (dict(steps_one=4, merge=2), "teacher"),
        (dict(name="a/b"), "folder"),
    ]:
        with pytest.raises(config.SettingsError, match=why):
            config.Settings(**wrong)
    made = config.Settings(name='a "quoted" one', rate=1e-5, skip_first=True)
    config.write(made, tmp_path / "settings.toml")
    assert config.read(tmp_path / "settings.toml") == made
    assert config.read(tmp_path / "settings.toml", {"steps": 5}) == dataclasses.replace(made, steps=5)
    (tmp_path / "settings.toml").write_text("stepz = 3\n")
    with pytest.raises(config.SettingsError, match="stepz"):
        config.read(tmp_path / "settings.toml")


def test_greedy_answers_are_exact_where_the_score_says_so(world):
    """A model that learned a few answers by heart gives some of them exactly and others not."""
    model, words = parts.load_model(world / "base"), parts.load_tokenizer(world / "base")
    end = data.end_of_turn(model, words)
    rows = data.encode(words, "", end, data.read_part(world / "data", "test")[:24])
    tiny.fit(model, rows[:8], steps=60, highest=3e-3, batch=8, seed=0)
    found = score.score(model, model, rows, torch.device("cpu"))
    assert 4 <= sum(found.hits) < 24
    for row, hit in zip(rows, found.hits, strict=True):
        assert (score.generated(model, row, end, torch.device("cpu")) == row.answer) == bool(hit)


def test_labels_of_a_plot_stand_apart():
    found = plot.apart([50.0, 51.0, 10.0, 198.0, 199.0], 0.0, 200.0)
    order = sorted(found)
    assert all(b - a >= plot.STEP - 1e-9 for a, b in zip(order, order[1:], strict=False)) and order[-1] <= 200
    costs = {"3pc": [{"length": length, "prompt": {"bytes": 1e6 * length}} for length in (64, 512)]}
    runs = [{"name": name, "exact": exact, "costs": costs} for name, exact in (("full", 1.0), ("a<b", 0.5))]
    drawn = plot.plot([{"name": "base", "exact": 0.1, "costs": {}}, *runs], "3pc")
    root = ElementTree.fromstring(drawn)
    circles = [e for e in root if e.tag.endswith("circle")]
    assert len(circles) == 4 and [float(c.get("cy")) for c in circles[:2]] == [plot.TOP, plot.TOP + plot.HEIGHT / 2]
    assert sum(e.text == "a<b" for e in root) == 2
