"""Folders whose weights are not plain numbers, or have other names: refused for what they are, in one sentence."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

import interlace
from interlace.base.errors import CheckpointError
from interlace.model.config import ModelConfig
from interlace.model.model import HybridLM
from interlace.model.presets import preset

BITS = {"F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "U32": 32, "I8": 8, "U8": 8, "F8_E4M3": 8, "C64": 64}
BITS |= {"BOOL": 8, "I16": 16, "U16": 16, "U64": 64, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4}
KNOWN = {torch.float32: "F32", torch.bfloat16: "BF16"}


@pytest.fixture
def folder(tmp_path):
    interlace.save(HybridLM(preset("tiny-transformer")), tmp_path / "model")
    return tmp_path / "model"


def store(path, tensors):
    """A safetensors file of zeros: name to (dtype as the format says it, shape)."""
    header, position = {}, 0
    for name, (dtype, shape) in tensors.items():
        stop = position + math.prod(shape) * BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, stop]}
        position = stop
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(position))


def plain(folder):
    return {n: (KNOWN[t.dtype], tuple(t.shape)) for n, t in load_file(folder / "model.safetensors").items()}


def quantise(folder, parts):
    """Every projection replaced by what `parts(name, rows, columns)` says is stored of it."""
    stored = {}
    for name, (dtype, shape) in plain(folder).items():
        if name.endswith("proj.weight"):
            stored |= parts(name.removesuffix(".weight"), *shape)
        else:
            stored[name] = (dtype, shape)
    store(folder / "model.safetensors", stored)


def configure(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(folder):
    with pytest.raises(CheckpointError) as caught:
        interlace.load(folder)
    return str(caught.value)


def fp8(scale, dtype="F32"):
    return lambda n, r, c: {f"{n}.weight": ("F8_E4M3", (r, c)), f"{n}.{scale}": (dtype, (r, 1))}


def gptq(n, r, c):
    rows, group = -(-c // 8), (1, -(-r // 8))
    return {
        f"{n}.qweight": ("I32", (rows, r)),
        f"{n}.qzeros": ("I32", group),
        f"{n}.scales": ("F16", (1, r)),
        f"{n}.g_idx": ("I32", (c,)),
    }


def awq(n, r, c):
    return {k: v for k, v in gptq(n, r, c).items() if not k.endswith("g_idx")}


def bnb4(n, r, c):
    name = f"{n}.weight"
    return {
        name: ("U8", (r * c // 2, 1)),
        f"{name}.absmax": ("U8", (r,)),
        f"{name}.quant_map": ("F32", (16,)),
        f"{name}.nested_absmax": ("F32", (1,)),
        f"{name}.nested_quant_map": ("F32", (256,)),
        f"{name}.quant_state.bitsandbytes__nf4": ("U8", (90,)),
    }


def bnb8(n, r, c):
    return {f"{n}.weight": ("I8", (r, c)), f"{n}.SCB": ("F32", (r,)), f"{n}.weight_format": ("U8", ())}


def packed(n, r, c):
    shape = {f"{n}.weight_shape": ("I64", (2,)), f"{n}.weight_scale": ("BF16", (r, 1))}
    return {f"{n}.weight_packed": ("I32", (r, -(-c // 8))), **shape}


def nvfp4(n, r, c):
    scales = {f"{n}.weight_scale": ("F8_E4M3", (r, 1)), f"{n}.weight_scale_2": ("F32", ())}
    return {f"{n}.weight": ("U8", (r, c // 2)), f"{n}.input_scale": ("F32", ()), **scales}


def mxfp4(n, r, c):
    return {f"{n}_blocks": ("U8", (r, 1, 16)), f"{n}_scales": ("U8", (r, 1))}


def hqq(n, r, c):
    return {f"{n}.W_q": ("U8", (r, c // 2)), f"{n}.scale": ("F16", (r, 1)), f"{n}.zero": ("F16", (r, 1))}


def mlx(n, r, c):
    return {f"{n}.weight": ("U32", (r, c // 8)), f"{n}.scales": ("BF16", (r, 1)), f"{n}.biases": ("BF16", (r, 1))}


GROUPS = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "group_size": 128}}}
FLOATS = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}}
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": False}
RELEASED = {  # what a release's config.json says, what it stores, and the words that name it
    "fp8 in blocks": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, fp8("weight_scale_inv"), ["fp8"]),
    "fbgemm": ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, fp8("weight_scale"), ["fbgemm_fp8"]),
    "compressed floats": (
        {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": FLOATS},
        fp8("weight_scale", "BF16"),
        ["compressed-tensors", "8"],
    ),
    "compressed integers": (
        {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": GROUPS},
        packed,
        ["compressed-tensors", "4"],
    ),
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}, gptq, ["gptq", "4"]),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}, awq, ["awq", "4"]),
    "bitsandbytes 4": ({**BNB, "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, bnb4, ["bitsandbytes", "4"]),
    "bitsandbytes 8": ({**BNB, "load_in_8bit": True}, bnb8, ["bitsandbytes", "8"]),
    "modelopt": ({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}, nvfp4, ["nvfp4"]),
    "mxfp4": ({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, mxfp4, ["mxfp4"]),
    "hqq": ({"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4}}}, hqq, ["hqq"]),
    "a method of tomorrow": ({"quant_method": "quark", "export": {}}, fp8("weight_scale"), ["quark"]),
}


@pytest.mark.parametrize("name", list(RELEASED))
def test_a_quantised_folder_is_called_so(folder, name):
    config, parts, words = RELEASED[name]
    quantise(folder, parts)
    configure(folder, quantization_config=config)
    said = refusal(folder).lower()
    assert all(word in said for word in ["quantised", *words]), said
    assert "did you mean" not in said
    assert "\n" not in said


UNSAID = {  # config.json holds no key: what is stored tells
    "fp8": (fp8("weight_scale_inv"), "fp8"),
    "gptq": (gptq, "gptq"),
    "awq": (awq, "awq"),
    "bitsandbytes 4": (bnb4, "bitsandbytes"),
    "bitsandbytes 8": (bnb8, "bitsandbytes"),
    "packed": (packed, "compressed-tensors"),
    "mxfp4": (mxfp4, "mxfp4"),
    "hqq": (hqq, "hqq"),
}


@pytest.mark.parametrize("name", list(UNSAID))
def test_it_is_known_by_its_tensors_alone(folder, name):
    parts, word = UNSAID[name]
    quantise(folder, parts)
    said = refusal(folder).lower()
    assert "quantised" in said
    assert word in said


def test_other_places_where_releases_say_it(folder):
    quantise(folder, mlx)
    configure(folder, quantization={"group_size": 64, "bits": 4}, quantization_config={"group_size": 64, "bits": 4})
    said = refusal(folder).lower()
    assert "quantised" in said
    assert "mlx" in said


def test_a_file_beside_the_config_says_it(folder):
    quantise(folder, nvfp4)
    (folder / "hf_quant_config.json").write_text(
        json.dumps({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "group_size": 16}})
    )
    said = refusal(folder).lower()
    assert "quantised" in said
    assert "nvfp4" in said


@pytest.mark.parametrize("damage", ["x", 3, [], {"quant_method": 7}, {"quant_method": "gptq", "bits": {}}], ids=str)
def test_a_damaged_note_of_quantisation_is_no_traceback(folder, damage):
    quantise(folder, gptq)
    configure(folder, quantization_config=damage)
    assert "quantised" in refusal(folder)


@pytest.mark.parametrize("note", [None, {}, {"quant_method": "fp8"}, {"quant_method": "gptq", "bits": 4}], ids=str)
def test_plain_weights_load_whatever_the_config_claims(folder, note):
    """Weights that someone made plain again: the effect counts, not the key."""
    configure(folder, quantization_config=note)
    interlace.load(folder)


def test_a_folder_of_gguf_is_called_so(folder):
    (folder / "model.safetensors").rename(folder / "model-Q4_K_M.gguf")
    assert "GGUF" in refusal(folder)


@pytest.mark.parametrize("config", [True, False])
def test_an_adapter_is_called_so(folder, config):
    note = {"peft_type": "LORA", "base_model_name_or_path": "someone/base", "r": 8}
    (folder / "adapter_config.json").write_text(json.dumps(note))
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    if not config:
        (folder / "config.json").unlink()
    said = refusal(folder)
    assert "someone/base" in said  # which is not there, or which it is to be merged into
    assert "adapter" in said or not config


def test_an_adapter_that_was_not_merged(folder):
    def parts(n, r, c):
        low = {f"{n}.lora_A.default.weight": ("F32", (2, c)), f"{n}.lora_B.default.weight": ("F32", (r, 2))}
        return {f"{n}.base_layer.weight": ("F32", (r, c)), **low}

    quantise(folder, parts)
    said = refusal(folder)
    assert "LoRA" in said
    assert "merge" in said


# Names


PREFIXES = ["base_model.model.", "_orig_mod.", "module.", "_fsdp_wrapped_module.", "model.", "student."]
PREFIXES += ["language_model."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_before_all_names_is_what_is_named(folder, prefix):
    tensors = load_file(folder / "model.safetensors")
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    said = refusal(folder)
    assert f"'{prefix}'" in said
    assert "prefix" in said
    assert "did you mean" not in said


def test_a_prefix_that_all_names_lack(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file({name.removeprefix("model."): tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    said = refusal(folder)
    assert "'model.'" in said
    assert "prefix" in said


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module."])
def test_a_wrapper_inside_the_names(folder, wrapper):
    tensors = load_file(folder / "model.safetensors")
    renamed = {re.sub(r"(layers\.\d+\.)", rf"\1{wrapper}", name): tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / "model.safetensors")
    said = refusal(folder)
    assert wrapper.strip(".") in said
    assert "did you mean" not in said


# Dtypes of what is not used


UNUSED = ["BOOL", "I8", "I16", "U16", "U32", "U64", "C64", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4"]


@pytest.mark.parametrize("dtype", UNUSED)
def test_dtypes_of_tensors_that_are_ignored_do_not_stop_a_load(folder, dtype):
    stored = plain(folder)
    store(folder / "model.safetensors", {**stored, "model.layers.0.self_attn.rotary_emb.inv_freq": (dtype, (4,))})
    interlace.load(folder)


@pytest.mark.parametrize("dtype", ["BOOL", "I8", "I64", "U16", "F8_E4M3"])
def test_a_weight_that_is_no_plain_number_is_refused(folder, dtype):
    stored = plain(folder)
    name = "model.norm.weight"
    store(folder / "model.safetensors", {**stored, name: (dtype, stored[name][1])})
    assert name in refusal(folder)


# Two sets of weights in one folder


def test_one_file_beside_an_index_is_not_read_in_silence(tmp_path):
    for name, size in (("one", 10**9), ("many", 20_000)):
        torch.manual_seed(size)
        interlace.save(HybridLM(preset("tiny-transformer")), tmp_path / name, shard_bytes=size)
    (tmp_path / "one" / "model.safetensors").rename(tmp_path / "many" / "model.safetensors")
    said = refusal(tmp_path / "many")
    assert "model.safetensors" in said
    assert "model.safetensors.index.json" in said
    assert "remove" in said


def test_an_index_of_the_one_file_is_no_second_set(folder):
    names = load_file(folder / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    interlace.load(folder)


@pytest.mark.parametrize("sizes", [(20_000, 10**9), (10**9, 20_000), (20_000, 40_000)], ids=str)
def test_saving_over_another_model_leaves_none_of_its_weights(tmp_path, sizes):
    tokens = torch.arange(9)
    for size in sizes:
        torch.manual_seed(size)
        model = HybridLM(preset("tiny-transformer"))
        interlace.save(model, tmp_path / "model", shard_bytes=size)
    assert torch.equal(interlace.load(tmp_path / "model")(tokens)[0], model(tokens)[0])
    interlace.save(model, tmp_path / "fresh", shard_bytes=sizes[-1])
    assert {p.name for p in (tmp_path / "model").iterdir()} == {p.name for p in (tmp_path / "fresh").iterdir()}


# Methods that only the config names, tensors that are not loaded, scales that are not of weights


METHODS = {
    "quanto": lambda n, r, c: {f"{n}.weight._data": ("I8", (r, c)), f"{n}.weight._scale": ("F32", (r, 1))},
    "aqlm": lambda n, r, c: {f"{n}.codes": ("I16", (r, c, 1)), f"{n}.codebooks": ("F16", (1, 16, 1, 8))},
    "vptq": lambda n, r, c: {f"{n}.indices": ("I32", (1, r, c)), f"{n}.centroids.weight": ("F16", (1, 16))},
    "exl2": lambda n, r, c: {f"{n}.q_weight": ("I32", (r, c)), f"{n}.q_scale": ("I32", (r, 1))},
    "exl3": lambda n, r, c: {f"{n}.trellis": ("I16", (1, 1, 64)), f"{n}.suh": ("F16", (c,))},
    "spqr": lambda n, r, c: {f"{n}.dense_weights": ("I64", (r,)), f"{n}.in_perm": ("I32", (r,))},
    "torchao": lambda n, r, c: {f"{n}.weight:qdata": ("I8", (r, c)), f"{n}.weight:scale": ("F32", (r, 1))},
    "marlin": lambda n, r, c: {f"{n}.B": ("I32", (r, c)), f"{n}.s": ("F16", (1, r))},
    "higgs": lambda n, r, c: {f"{n}.weight": ("I16", (r, c)), f"{n}.tables": ("F16", (1,))},
    "quark": lambda n, r, c: {f"{n}.weight": ("I8", (r, c)), f"{n}.weight_quantizer.scale": ("F32", (r,))},
    "smoothquant": lambda n, r, c: {f"{n}.weight": ("I8", (r, c)), f"{n}.dequant_scale": ("F32", ())},
}
BY_CONFIG_ALONE = ("marlin", "higgs", "quark", "smoothquant")


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("method", list(METHODS))
def test_methods_are_named_by_the_config_or_by_their_tensors(folder, method, said):
    quantise(folder, METHODS[method])
    if said:
        configure(folder, quantization_config={"quant_method": method})
    elif method in BY_CONFIG_ALONE:
        return
    assert f"quantised ({method})" in refusal(folder)


@pytest.mark.parametrize("leaf", ["k_proj.k_scale", "v_proj.v_scale", "k_scale", "v_scale", "q_proj.input_scale"])
def test_plain_weights_with_scales_of_the_cache_or_of_activations_are_opened(folder, leaf):
    note = {"quant_method": "modelopt", "kv_cache_quant_algo": "FP8", "quant_algo": None}
    configure(folder, quantization_config=note)
    store(folder / "model.safetensors", {**plain(folder), f"model.layers.0.self_attn.{leaf}": ("F32", ())})
    interlace.load(folder)


BESIDE = {
    "an fp8 tower": {"model.visual.blocks.0.attn.qkv.weight": ("F8_E4M3", (4, 4))},
    "its scale": {"model.visual.blocks.0.attn.qkv.weight_scale_inv": ("F32", (1, 1))},
    "fp8 experts of mtp": {"mtp.fc.weight": ("F8_E4M3", (4, 4)), "mtp.fc.weight_scale": ("F32", (1, 1))},
    "a plain tensor named blocks": {"model.visual.up_blocks": ("F32", (4,))},
}


@pytest.mark.parametrize("name", list(BESIDE))
def test_what_is_not_loaded_may_be_quantised(tmp_path, name):
    attention = {"heads": 2, "qk_norm": "head", "gate": True, "head_dim": 8}
    table = {"width": 16, "depth": 1, "vocabulary": 31, "pattern": ["attention"], "mlp": {"width": 20}}
    config = ModelConfig.from_dict({**table, "attention": attention, "zero_centred_norms": True})
    interlace.save(HybridLM(config), tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "qwen3_5_text"
    store(tmp_path / "model" / "model.safetensors", {**plain(tmp_path / "model"), **BESIDE[name]})
    model = interlace.load(tmp_path / "model")
    interlace.save(model, tmp_path / "again")
    kept = {n: x for n, x in BESIDE[name].items() if n.startswith("mtp.")}
    assert set(load_file(tmp_path / "again" / "model.safetensors")) >= set(kept)
    interlace.load(tmp_path / "again")


# Prefixes where something else stands beside


@pytest.mark.parametrize("prefix", ["base_model.model.", "module.", "_orig_mod.", "student."])
@pytest.mark.parametrize("beside", ["a stored tied head", "one extra", "an extra first", "old frequencies"])
def test_a_prefix_is_seen_whatever_stands_beside(tmp_path, prefix, beside):
    folder = tmp_path / "model"
    interlace.save(HybridLM(preset("tiny-transformer").replace(tied_embeddings=True)), folder)
    tensors = load_file(folder / "model.safetensors")
    extra = {
        "a stored tied head": {f"{prefix}lm_head.weight": tensors["model.embed_tokens.weight"].clone()},
        "one extra": {"step": torch.ones(1)},
        "an extra first": {"a.b": torch.ones(1)},
        "old frequencies": {f"{prefix}model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)},
    }
    save_file({prefix + n: t for n, t in tensors.items()} | extra[beside], folder / "model.safetensors")
    said = refusal(folder)
    assert f"prefix '{prefix}'" in said


def test_a_lacking_prefix_is_seen_beside_a_stored_tied_head(tmp_path):
    folder = tmp_path / "model"
    interlace.save(HybridLM(preset("tiny-transformer").replace(tied_embeddings=True)), folder)
    tensors = load_file(folder / "model.safetensors")
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file({n.removeprefix("model."): t for n, t in tensors.items()} | head, folder / "model.safetensors")
    assert "lack the prefix 'model.'" in refusal(folder)


# Shards without an index, tied heads in another dtype


@pytest.mark.parametrize(
    "name", ["model-0000{}-of-0000{}.safetensors", "model.safetensors-0000{}-of-0000{}.safetensors"]
)
@pytest.mark.parametrize("size", [10**9, 20_000])
def test_shards_whose_numbers_are_whole_need_no_index(tmp_path, name, size):
    torch.manual_seed(0)
    model = HybridLM(preset("tiny-transformer"))
    folder = tmp_path / "model"
    interlace.save(model, folder, shard_bytes=size)
    files = sorted(folder.glob("*.safetensors"))
    for number, file in enumerate(files, start=1):
        file.rename(folder / name.format(number, len(files)))
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    assert torch.equal(interlace.load(folder)(torch.arange(9))[0], model(torch.arange(9))[0])
    if len(files) > 1:
        (folder / name.format(2, len(files))).unlink()
        said = refusal(folder)
        assert name.format(2, len(files)) in said
        assert "missing" in said


def test_two_sets_of_shards_without_an_index_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"")
    assert "two sets" in refusal(folder)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_stored_tied_head_may_have_another_dtype(tmp_path, dtype):
    folder = tmp_path / "model"
    interlace.save(HybridLM(preset("tiny-transformer").replace(tied_embeddings=True)), folder)
    tensors = load_file(folder / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].to(dtype)
    save_file({**tensors, "lm_head.weight": head}, folder / "model.safetensors")
    interlace.load(folder)
    head[3, 5] += 1
    save_file({**tensors, "lm_head.weight": head}, folder / "model.safetensors")
    assert "ties the head" in refusal(folder)
