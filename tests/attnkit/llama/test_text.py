"""Text from a folder is transformers' text, a whole character at a time; what cannot be read is refused in a line."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnkit.llama import Config, Decoder, Model, Sampling, Tokenizer, Weights, build, generate, rung, stream, write
from attnkit.llama.__main__ import FASTEST, main
from attnkit.llama.text import CUT, Spelling

CONFIG = Config(hidden=64, intermediate=96, layers=2, hq=4, hkv=2, vocab=400, positions=64)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PROMPT = "The café's naïve 日本 cat"


def decoder_of(capacity: int = 64, sampling: Sampling | None = None) -> Decoder:
    model = Model(Weights.random(CONFIG, dtype=torch.float32, seed=1))
    return build(rung("matmul"), model, batch=1, capacity=capacity, sampling=sampling or Sampling())


# --- streams and spelling: no package but ours


def test_a_stream_is_what_generate_gives_and_the_host_looks_once_in_so_many_steps() -> None:
    prompt = torch.arange(5)[None]
    expected = generate(decoder_of(), prompt, 40)[0].tolist()
    chunks = list(stream(decoder_of(), prompt, 40, every=16))
    assert [len(chunk) for chunk in chunks] == [1, 16, 16, 7]
    assert [token for chunk in chunks for token in chunk] == expected
    assert list(stream(decoder_of(), prompt, 1)) == [expected[:1]]


@pytest.mark.parametrize("place", [0, 1, 5, 16, 17, 39])
def test_a_stream_ends_before_the_first_token_that_ends_it(place: int) -> None:
    prompt, decoder = torch.arange(5)[None], decoder_of(sampling=Sampling(temperature=5.0))
    expected = list(generate(decoder, prompt, 40)[0].tolist())
    assert len(set(expected)) > 30, "the test wants tokens that are not all the same"
    end = expected[place]
    found = [token for chunk in stream(decoder, prompt, 40, ends={end, CONFIG.vocab}) for token in chunk]
    assert found == expected[: expected.index(end)]
    # what it decoded in vain is less than what lies between two looks
    assert decoder.length - prompt.shape[1] - expected.index(end) < 16


def test_a_stream_that_does_not_fit_is_refused() -> None:
    prompt = torch.arange(5)[None]
    with pytest.raises(ValueError, match="5 tokens and 61 more need a capacity of 65, got 64"):
        next(stream(decoder_of(), prompt, 61))
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        next(stream(decoder_of(), prompt, 8, every=0))
    two = build(rung("matmul"), Model(Weights.random(CONFIG, dtype=torch.float32)), batch=2, capacity=8)
    with pytest.raises(ValueError, match="a stream is of one sequence, got a batch of 2"):
        next(stream(two, torch.zeros(2, 4, dtype=torch.int64), 2))


WORDS = st.lists(st.integers(6, 9), max_size=20)


def of_bytes(ids: Sequence[int]) -> str:
    """A token a byte."""
    return bytes(ids).decode(errors="replace")


def of_words(ids: Sequence[int]) -> str:
    """As Llama 2's tokenizer: words bring the blank before them, which a text's first loses; 9 is no text."""
    return "".join(" a" if i % 2 else "b " for i in ids if i != 9).removeprefix(" ")


def spelled(decode: Callable[[Sequence[int]], str], prompt: Sequence[int], ids: Sequence[int], every: int) -> str:
    """The text of tokens that come so many at a time, in which no piece has a character that is not whole."""
    spelling, text = Spelling(decode, prompt), ""
    for start in range(0, len(ids), every):
        piece = spelling.add(ids[start : start + every])
        assert not piece.endswith(CUT)
        text += piece
        so_far = decode([*prompt, *ids[: start + every]])
        if not so_far.endswith(CUT):
            assert text == so_far[len(decode(prompt)) :], "what is whole is given out"
    return text + spelling.rest()


@given(prompt=st.text(), text=st.binary(max_size=40) | st.text().map(str.encode), every=st.integers(1, 5))
def test_characters_come_whole_however_their_bytes_are_cut(prompt: str, text: bytes, every: int) -> None:
    before = prompt.encode()
    assert spelled(of_bytes, before, text, every) == of_bytes([*before, *text])[len(prompt) :]


@given(prompt=WORDS, ids=WORDS, every=st.integers(1, 5))
def test_blanks_between_words_are_kept(prompt: list[int], ids: list[int], every: int) -> None:
    assert spelled(of_words, prompt, ids, every) == of_words([*prompt, *ids])[len(of_words(prompt)) :]


# --- folders


TEXTS = ["The cat sat on the mat, and the café was naïve.", "日本の猫 and the cat's hat 🐈 sat on the mat"] * 4


def byte_level() -> Any:
    """As Llama 3's: bytes that were merged, a token before each text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return made


def blanks() -> Any:
    """As Llama 2's: blanks are letters, and what is not in the vocabulary is bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    letters = sorted(set("".join(TEXTS)) - set("日本の猫🐈") | {"▁"})
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *letters, "▁t", "▁c", "at", "▁cat"]
    merges = [("▁", "t"), ("▁", "c"), ("a", "t"), ("▁c", "at")]
    vocab = {token: i for i, token in enumerate(tokens)}
    made = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in tokens[:3]])
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


KINDS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "as-llama-3": (byte_level, {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}),
    "as-llama-2": (
        blanks,
        {
            "tokenizer_class": "LlamaTokenizer",
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": {"__type": "AddedToken", "content": "<s>", "special": True},
            "eos_token": {"__type": "AddedToken", "content": "</s>", "special": True},
            "unk_token": "<unk>",
        },
    ),
}


def put(folder: Path, name: str, **entries: Any) -> None:
    """Write entries into a JSON file of the folder; None takes one away."""
    path = folder / name
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: value for key, value in (found | entries).items() if value is not None}))


def fill(folder: Path, kind: str) -> Path:
    """Make a Hugging Face folder with drawn weights and a tokenizer."""
    pytest.importorskip("tokenizers", reason="it reads the folder's tokenizer")
    save = pytest.importorskip("safetensors.torch", reason="the folder's weights are safetensors").save_file
    make, settings = KINDS[kind]
    make().save(str(folder / "tokenizer.json"))
    put(folder, "tokenizer_config.json", **settings)
    put(
        folder,
        "config.json",
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        hidden_size=CONFIG.hidden,
        intermediate_size=CONFIG.intermediate,
        num_hidden_layers=CONFIG.layers,
        num_attention_heads=CONFIG.hq,
        num_key_value_heads=CONFIG.hkv,
        vocab_size=CONFIG.vocab,
        max_position_embeddings=CONFIG.positions,
        rms_norm_eps=CONFIG.epsilon,
        bos_token_id=0,
        eos_token_id=399,
    )
    state = Weights.random(CONFIG, dtype=torch.float32, seed=1).state()
    save({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return fill(tmp_path, request.param)


def theirs(folder: Path, prompt: str, count: int) -> tuple[list[int], list[int], str]:
    """Transformers' tokens of a prompt, those that it continues them by, and the text of these."""
    transformers = pytest.importorskip("transformers", reason="transformers is the judge of this test")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    given = tokenizer(prompt, return_tensors="pt")
    ids = model.generate(**given, max_new_tokens=count, do_sample=False, pad_token_id=0)[0]
    before, after = (tokenizer.decode(t, skip_special_tokens=True) for t in (given.input_ids[0], ids))
    assert after.startswith(before)
    length = given.input_ids.shape[1]
    return ids[:length].tolist(), ids[length:].tolist(), after[len(before) :]


def said(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """What the command writes."""
    code = main([str(folder), PROMPT, *options])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


quiet = pytest.mark.filterwarnings("ignore")  # transformers and what it imports warn of themselves
on_a_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the command decodes in bfloat16")


@quiet
@on_a_cpu
def test_the_command_writes_what_transformers_writes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt, _, text = theirs(folder, PROMPT, 30)
    assert said(folder, capsys, "--tokens", "30") == text + "\n"
    assert Tokenizer.from_folder(folder).encode(PROMPT) == prompt


@quiet
@on_a_cpu
@pytest.mark.parametrize("file", ["generation_config.json", "config.json", "tokenizer_config.json"])
def test_text_ends_where_transformers_ends_it(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fill(tmp_path, "as-llama-3")
    _, ids, whole = theirs(folder, PROMPT, 20)
    end = next(i for i, token in enumerate(ids) if i > 3 and token not in ids[:i])
    if file == "generation_config.json":  # it is above config.json, and may name several
        put(folder, file, eos_token_id=[398, ids[end]])
    elif file == "config.json":
        put(folder, file, eos_token_id=ids[end])
    else:  # transformers would not end: that token is not looked at, and ours ends where the others name none
        put(folder, "generation_config.json", bos_token_id=0)
        token = Tokenizer.from_folder(folder).tokenizer.id_to_token(ids[end])
        put(folder, file, eos_token=token)
    found = said(folder, capsys, "--tokens", "20").removesuffix("\n")
    if file != "tokenizer_config.json":
        _, ended, text = theirs(folder, PROMPT, 20)
        assert ended == ids[: end + 1]
        # theirs has the text of the token that ends it, where that is no special token
        last = len(Tokenizer.from_folder(folder).decode([ids[end]]))
        assert found == text[: len(text) - last]
    assert whole.startswith(found)
    assert 0 < len(found) < len(whole)


@quiet
@pytest.mark.parametrize("begun", [True, False])
def test_a_prompt_begins_as_transformers_begins_it(begun: bool, tmp_path: Path) -> None:
    folder = fill(tmp_path, "as-llama-3")
    if not begun:
        put(folder, "tokenizer.json", post_processor=None)
    # before tokenizer.json these said it; where there is one it does, whatever they say
    put(folder, "tokenizer_config.json", add_bos_token=not begun, add_eos_token=True)
    ids = Tokenizer.from_folder(folder).encode("the cat")
    assert (ids[0] == 0) is begun
    transformers = pytest.importorskip("transformers", reason="transformers is the judge of this test")
    assert ids == transformers.AutoTokenizer.from_pretrained(folder)("the cat").input_ids


def test_a_prompt_is_neither_cut_nor_filled_as_the_tokenizer_s_training_was(tmp_path: Path) -> None:
    folder = fill(tmp_path, "as-llama-3")
    made = byte_level()
    made.enable_truncation(4)
    made.enable_padding(length=50)
    made.save(str(folder / "tokenizer.json"))
    ids = Tokenizer.from_folder(folder).encode(PROMPT)
    assert Tokenizer.from_folder(folder).decode(ids) == PROMPT
    assert 4 < len(ids) < 50


def test_the_command_draws_by_its_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fill(tmp_path, "as-llama-3")
    drawn = [said(folder, capsys, "--temperature", "2", "--seed", seed, "--tokens", "20") for seed in "112"]
    assert drawn[0] == drawn[1] != drawn[2]


def test_text_ends_with_the_context_and_its_speed_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fill(tmp_path, "as-llama-3")
    tokenizer = Tokenizer.from_folder(folder)
    length = len(tokenizer.encode(PROMPT))
    room = CONFIG.positions + 1 - length
    device, dtype = (DEVICE, torch.bfloat16) if DEVICE.type == "cuda" else (DEVICE, torch.float32)
    taken = next(entry for entry in map(rung, FASTEST) if not entry.why_not(CONFIG, 1, device, dtype))
    model = Model(Weights.from_folder(folder, device, dtype))
    decoder = build(taken, model, batch=1, capacity=CONFIG.positions)
    assert main([str(folder), PROMPT, "--tokens", "1000"]) == 0
    out, err = capsys.readouterr()
    assert out == "".join(write(decoder, tokenizer, PROMPT, room)) + "\n"
    assert f"{taken.name} on {device.type}, prompt of {length} tokens; {room - 1} tokens after the first in " in err
    assert err.endswith(" tokens/s\n")


def broken(name: str, text: str = "{") -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


@on_a_cpu
@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (without("config.json"), [], r"has a config\.json, got .* without one"),
        (without("tokenizer.json"), [], r"has a tokenizer\.json, got .* without one"),
        (without("model.safetensors"), [], r"has \*\.safetensors, got .* without one"),
        (broken("config.json"), [], r"config\.json must be JSON, got "),
        (broken("config.json", "[]"), [], r"config\.json must hold an object, got a list"),
        (broken("config.json", '{"model_type": "llama"}'), [], "must have 'hidden_size', got one without it"),
        (
            lambda folder: put(folder, "config.json", quantization_config={"quant_method": "gptq"}),
            [],
            "got one of 'gptq'",
        ),
        (broken("tokenizer.json"), [], r"tokenizer\.json must be a tokenizer, got "),
        (broken("tokenizer_config.json", '{"eos_token": "<end>"}'), [], "eos_token of .* got '<end>'"),
        (broken("generation_config.json", '{"eos_token_id": [[2]]}'), [], r"eos_token_id of gen.* got \[\[2\]\]"),
        (broken("generation_config.json", '{"eos_token_id": "</s>"}'), [], "eos_token_id of gen.* got '</s>'"),
        (broken("model.safetensors", "version https://git-lfs"), [], r"model\.safetensors must be a safetensors file"),
        (None, ["--rung", "fast"], "no rung is called 'fast': take one of matmul, "),
        # what cannot be is said before weights are read
        (
            without("model.safetensors"),
            ["--rung", "persistent"],
            "persistent cannot: a CUDA graph needs a CUDA device, got cpu",
        ),
        (None, ["--tokens", "0"], "--tokens must be at least 1, got 0"),
        (None, ["--temperature", "-1"], "temperature must be finite and not negative, got -1.0"),
        (lambda folder: put(folder, "config.json", max_position_embeddings=3), [], "must have 1 to 3 tokens, .* got "),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    spoil: Callable[[Path], object] | None,
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = fill(tmp_path, "as-llama-3")
    put(folder, "generation_config.json", bos_token_id=0)  # and no eos_token_id: the tokenizer's is asked for
    if spoil:
        spoil(folder)
    assert main([str(folder), PROMPT, *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert re.search(message, err), err


def test_a_folder_that_is_not_there_and_packages_that_are_missing_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([str(tmp_path / "llama"), PROMPT]) == 2
    assert re.fullmatch(r"attnkit\.llama: there is no folder '.*llama': download .*\n", capsys.readouterr().err)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match="pip install tokenizers"):
        Tokenizer.from_folder(tmp_path)


def test_a_prompt_that_is_not_unicode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="surrogates not allowed"):
        Tokenizer.from_folder(fill(tmp_path, "as-llama-3")).encode(os.fsdecode(b"a\xff"))


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = fill(tmp_path, "as-llama-3")
    small = Weights.random(dataclasses.replace(CONFIG, vocab=50), dtype=torch.float32)
    decoder = build(rung("matmul"), Model(small), batch=1, capacity=32)
    with pytest.raises(ValueError, match=r"must be below the model's 50, got .* another tokenizer's"):
        next(write(decoder, Tokenizer.from_folder(folder), PROMPT, 4))
