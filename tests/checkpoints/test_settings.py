"""Configs beside weights and in their metadata come from strangers too: each bad one is refused, soon, by the kit's own
error."""
import json

import file_makers as make
import pytest
import torch
from animkit import AnimkitError, open_checkpoint
from animkit.checkpoints.settings import check_sizes
from safetensors.torch import save_file

SMALL = (32, 32)
DEEP = "[" * 200_000


@pytest.fixture(scope="module")
def weights():
    unet = make.unet("sd1", SMALL)
    adapter = make.adapter(SMALL, positions=4)
    return {"unet": unet, "adapter": adapter, "motion": make.reference_motion(adapter),
            "vae": make.vae(), "peft": make.peft_lora(make.pairs(unet, r"attn1\.to_q$", 2))}


def with_metadata(path, weights, **metadata):
    save_file({n: t.contiguous().clone() for n, t in weights.items()}, path, metadata)
    return path


def refused(build):
    with pytest.raises(AnimkitError) as error:
        build()
    return str(error.value)


OWN = [{"heads": "x"}, {"heads": 0}, {"heads": -8}, {"heads": None}, {"heads": 7}, {"norm_groups": 7},
       {"positions": 10**11}, {"positions": 9}, {"kind": "y"}, {"kind": "conv"}, {"norm": []}, {"version": "v9"}]


@pytest.mark.parametrize("setting", OWN, ids=str)
def test_our_own_config_says_something_impossible(tmp_path, weights, setting):
    config = json.dumps({"_class_name": "MotionModules"} | setting)
    file = with_metadata(tmp_path / "m.safetensors", weights["motion"], config=config)
    assert str(file) in refused(lambda: open_checkpoint(file).build())


def test_positions_are_not_taken_at_their_word_where_the_file_has_none(tmp_path, weights):
    bare = {n: t for n, t in weights["motion"].items() if not n.endswith(".pe")}
    config = json.dumps({"_class_name": "MotionModules", "positions": 10**11})
    file = with_metadata(tmp_path / "m.safetensors", bare, config=config)
    assert "not one whole number from 1 to 4096" in refused(lambda: open_checkpoint(file))


def test_metadata_that_is_no_config_is_not_ours_to_judge(tmp_path, weights):
    for text in (DEEP, "{", "7", '{"_class_name": "SomethingElse", "heads": "x"}'):
        file = with_metadata(tmp_path / "m.safetensors", weights["motion"], config=text)
        assert open_checkpoint(file).build().heads == 8


@pytest.mark.parametrize("setting", [{"motion_num_attention_heads": []}, {"motion_num_attention_heads": "8"},
                                     {"motion_num_attention_heads": [8, 4]}, {"motion_num_attention_heads": None},
                                     {"motion_norm_num_groups": 0}, {"motion_norm_num_groups": 7}], ids=str)
def test_a_motion_adapters_config_says_something_impossible(tmp_path, weights, setting):
    weights["adapter"].save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"motion_num_attention_heads": [8, 8]}))
    assert open_checkpoint(tmp_path).build().heads == 8
    (tmp_path / "config.json").write_text(json.dumps(config | setting))
    refused(lambda: open_checkpoint(tmp_path).build())


@pytest.mark.parametrize("said", [
    DEEP, "[8]", '{"unet.lora_alpha": "x"}', '{"unet.lora_alpha": NaN}', '{"unet.lora_alpha": true}',
    '{"unet.lora_alpha": 1e400}', '{"unet.lora_alpha": 1' + "0" * 400 + "}", '{"unet.lora_alpha": [8]}',
    '{"unet.lora_alpha": 8, "unet.alpha_pattern": [1]}', '{"unet.lora_alpha": 8, "unet.alpha_pattern": {"to_q": null}}',
], ids=lambda said: said[:60])
def test_pefts_alpha_is_a_number_or_the_file_is_refused(tmp_path, weights, said):
    file = with_metadata(tmp_path / "l.safetensors", weights["peft"], lora_adapter_metadata=said)
    assert str(file) in refused(lambda: open_checkpoint(file))


MODELS = {
    "unet": [{"layers_per_block": 10**9}, {"transformer_layers_per_block": 10**8}, {"block_out_channels": [32] * 4000},
             {"block_out_channels": "x"}, {"down_block_types": ["Nope"]}, {"attention_head_dim": "a"},
             {"cross_attention_dim": 10**15}, {"cross_attention_dim": 10**400}, {"norm_num_groups": 7},
             {"num_class_embeds": 10**16}, {"encoder_hid_dim_type": "text_proj", "encoder_hid_dim": 10**14}],
    "vae": [{"layers_per_block": 10**9}, {"latent_channels": 10**12}, {"block_out_channels": 3}],
}


@pytest.mark.parametrize("part, setting", [(part, s) for part, settings in MODELS.items() for s in settings],
                         ids=lambda value: str(value)[:50])
def test_a_models_config_asks_for_what_its_weights_cannot_have(tmp_path, weights, part, setting):
    """Refused before it is built: some of these would take all memory there is, others a year."""
    weights[part].save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | setting))
    checkpoint = open_checkpoint(tmp_path)
    refused(checkpoint.unet if part == "unet" else checkpoint.vae)


def test_the_configs_of_real_models_pass():
    from animkit.checkpoints.architecture import architecture
    for version in ("sd1", "sd2", "sdxl"):
        for part in ("unet", "vae"):
            check_sizes("x", architecture(version)[part], {"small": torch.ones(3)})
