"""The transformer's parts, one module each, against the official implementation's numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from longcat_tune.model.attention_layers import RMSNorm
from longcat_tune.model.blocks import BlockContext, unpatchify
from longcat_tune.model.elementwise import LEAN
from longcat_tune.model.rope import rotary_angles, rotary_table, rotate
from tests.golden.cases import Case, parametrize

TOKENS_PER_FRAME = 6  # every self-attention, cross-attention and block case has frames of 2 x 3 tokens


def unpack(packed_1LC: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """The official packed text as a padded batch and its mask; pads hold junk that must not matter."""
    text_BLC = torch.full((len(lengths), max(lengths), packed_1LC.shape[-1]), 7.0)
    keep_BL = torch.zeros(len(lengths), max(lengths), dtype=torch.bool)
    for row, part in enumerate(packed_1LC[0].split(lengths)):
        text_BLC[row, : len(part)] = part
        keep_BL[row, : len(part)] = True
    return text_BLC, keep_BL


@parametrize("rope")
def test_rotary_positions_equal_official(case: Case) -> None:
    tensors = case.tensors()
    grid, head_dim = tuple(case.call["grid"]), case.call["head_dim"]
    angles_Nd = rotary_angles(grid, head_dim)
    case.check(angles_Nd.repeat_interleave(2, dim=-1), tensors["out.angles"])
    table = rotary_table(grid, head_dim)
    case.check(rotate(tensors["in.q"], table), tensors["out.q"])
    case.check(rotate(tensors["in.k"], table), tensors["out.k"])


@parametrize("t_embedder")
def test_timestep_embedding_equals_official(case: Case) -> None:
    tensors = case.tensors()
    case.check(case.model().t_embedder(tensors["in.t"]), tensors["out.emb"])


@parametrize("y_embedder")
def test_caption_embedding_equals_official(case: Case) -> None:
    tensors = case.tensors()
    case.check(case.model().y_embedder(tensors["in.caption"]), tensors["out.y"])


@parametrize("ffn")
def test_feed_forward_equals_official(case: Case) -> None:
    tensors = case.tensors()
    ffn = case.model().blocks[0].ffn
    assert ffn.w1.out_features == case.call["hidden_dim"]
    case.check(ffn(tensors["in.x"]), tensors["out.x"])


@parametrize("x_embedder")
def test_patch_embedding_equals_official(case: Case) -> None:
    tensors = case.tensors()
    case.check(case.model().x_embedder(tensors["in.x"]), tensors["out.tokens"])


@parametrize("final_layer")
def test_final_layer_equals_official(case: Case) -> None:
    tensors = case.tensors()
    case.check(case.model().final_layer(tensors["in.x"], tensors["in.t"]), tensors["out.x"])


@parametrize("unpatchify")
def test_unpatchify_equals_official(case: Case) -> None:
    tensors = case.tensors()
    grid = (case.call["N_t"], case.call["N_h"], case.call["N_w"])
    case.check(unpatchify(tensors["in.x"], grid, (1, 2, 2)), tensors["out.x"])


@parametrize("rmsnorm")
def test_rms_norm_equals_official(case: Case) -> None:
    tensors = case.tensors()
    norm: RMSNorm = case.model().blocks[0].attn.q_norm
    case.check(norm(tensors["in.x"]), tensors["out.x"])
    got_bf16 = norm.bfloat16()(tensors["in.x"].bfloat16())
    assert torch.equal(got_bf16, tensors["out.x_bf16"].bfloat16())


@parametrize("layernorm")
def test_layer_norms_equal_official(case: Case) -> None:
    tensors = case.tensors()
    zeros = torch.zeros(2, 1, tensors["in.x"].shape[-1])
    norm = case.model().blocks[0].pre_crs_attn_norm
    case.check(LEAN.layer_norm(tensors["in.x"], norm.weight, norm.bias), tensors["out.affine"])
    case.check(LEAN.modulate(tensors["in.x"], zeros, zeros), tensors["out.plain"])


@parametrize("self_attn")
def test_self_attention_equals_official(case: Case) -> None:
    tensors, attention = case.tensors(), case.model().blocks[0].attn
    rotary = rotary_table(tuple(case.call["shape"]), attention.q_norm.weight.numel())
    out, (k, v) = attention(tensors["in.x"], rotary, return_kv=True)
    case.check(out, tensors["out.x"])
    case.check(k, tensors["out.k_cache"])
    case.check(v, tensors["out.v_cache"])
    for frames in (1, 2):
        out, _ = attention(tensors["in.x"], rotary, num_cond_tokens=frames * TOKENS_PER_FRAME)
        case.check(out, tensors[f"out.x_cond{frames}"])


@parametrize("cross_attn")
def test_cross_attention_equals_official(case: Case) -> None:
    tensors, attention = case.tensors(), case.model().blocks[0].cross_attn
    text_BLC, keep_BL = unpack(tensors["in.cond"], case.call["kv_seqlen"])
    case.check(attention(tensors["in.x"], text_BLC, keep_BL), tensors["out.x"])
    out = attention(tensors["in.x"], text_BLC, keep_BL, num_cond_tokens=TOKENS_PER_FRAME)
    case.check(out, tensors["out.x_cond1"])
    assert out[:, :TOKENS_PER_FRAME].eq(0).all()


@parametrize("block")
def test_block_equals_official(case: Case) -> None:
    tensors, model = case.tensors(), case.model()
    text_BLC, keep_BL = unpack(tensors["in.y"], case.call["y_seqlen"])
    rotary = rotary_table(tuple(case.call["latent_shape"]), model.head_dim)

    def run(num_cond_tokens: int = 0, skip_cross_attention: bool = False) -> Tensor:
        context = BlockContext(
            tensors["in.t"], text_BLC, keep_BL, rotary, num_cond_tokens, skip_cross_attention
        )
        return model.blocks[0](tensors["in.x"], context)[0]

    case.check(run(), tensors["out.x"])
    case.check(run(num_cond_tokens=TOKENS_PER_FRAME), tensors["out.x_cond1"])
    case.check(run(skip_cross_attention=True), tensors["out.x_skip_cross"])


@parametrize("bf16_fp32_islands")
def test_float32_islands_equal_official(case: Case) -> None:
    tensors, model = case.tensors(), case.model(torch.bfloat16)
    time_emb = model.t_embedder(tensors["in.t"])
    modulation = model.blocks[0].adaLN_modulation(tensors["in.t_cond"])
    shift, scale, *_ = modulation.chunk(6, dim=-1)
    modulated = LEAN.modulate(tensors["in.x"], shift, scale)
    final = model.final_layer(tensors["in.x"], tensors["in.t_cond"])
    assert [t.dtype for t in (time_emb, modulation, modulated, final)] == [
        torch.float32,
        torch.float32,
        torch.bfloat16,
        torch.float32,
    ]
    case.check(time_emb, tensors["out.t_emb"], "out.t_emb")
    case.check(modulation, tensors["out.modulation"], "out.modulation")
    case.check(modulated, tensors["out.modulated_x"], "out.modulated_x")
    case.check(final, tensors["out.final_layer"], "out.final_layer")
