"""XLA's text of a program, on texts written by hand: loops, groups, tuples, asynchronous pairs, slices."""

from __future__ import annotations

import pytest

from sere_jax.commands import hlo
from sere_jax.commands.hlo import Array

MESH = {"data": 4, "fsdp": 2}

LOOP = """HloModule jit_step, entry_computation_layout={()->f32[]}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%sliced (p: f32[12,48,4], i: s32[]) -> f32[48,4] {
  %p = f32[12,48,4]{2,1,0:T(8,128)} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = f32[48,4]{1,0:T(8,128)} dynamic-slice(%p, %i, %zero, %zero), dynamic_slice_sizes={1,48,4}
}

%body (t: (s32[], f32[12,48,4])) -> (s32[], f32[12,48,4]) {
  %t = (s32[], f32[12,48,4]{2,1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %stack = f32[12,48,4]{2,1,0:T(8,128)} get-tuple-element(%t), index=1
  %layer = f32[48,4]{1,0} fusion(%stack, %i), kind=kLoop, calls=%sliced
  %dot = bf16[48,4]{1,0} convert(%layer), metadata={op_name="jit(step)/transpose(jvp(Network))/backbone/blocks/mlp/fc1/dot_general" id=3}
  %sum = bf16[48,4]{1,0} all-reduce(%dot), channel_id=1, replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %out = (s32[], f32[12,48,4]{2,1,0}) tuple(%i, %stack)
}

%condition (t: (s32[], f32[12,48,4])) -> pred[] {
  %t = (s32[], f32[12,48,4]) parameter(0)
  ROOT %go = pred[] constant(true)
}

ENTRY %main (x: (s32[], f32[12,48,4]), w: f32[100], v: s32[3]) -> f32[] {
  %x = (s32[], f32[12,48,4]) parameter(0)
  %w = f32[100]{0} parameter(1)
  %v = s32[3]{0} parameter(2)
  %loop = (s32[], f32[12,48,4]) while(%x), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"12"}}
  %pair = (f32[100]{0}, s32[3]{0}) all-reduce(%w, %v), channel_id=2, replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add
  %begun = (f32[50]{0}, f32[100]{0}) all-gather-start(%half), channel_id=3, replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}
  %half = f32[50]{0} constant({...})
  %whole = f32[100]{0} all-gather-done(%begun)
  %moved = f32[50]{0} collective-permute(%half), channel_id=4, source_target_pairs={{0,2},{2,0}}
  ROOT %scattered = f32[50]{0} reduce-scatter(%w), channel_id=5, replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}, to_apply=%add
}
"""


def test_collectives_with_their_loops_axes_and_sources():
    by_kind: dict[str, list[hlo.Collective]] = {}
    for one in hlo.collectives(hlo.parse(LOOP), MESH):
        by_kind.setdefault(one.kind, []).append(one)
    assert sorted(by_kind) == ["all-gather", "all-reduce", "collective-permute", "reduce-scatter"]
    pair = [one for one in by_kind["all-reduce"] if one.runs == 1]
    assert [(one.array, one.axis, one.group) for one in pair] == [(Array("f32", (100,)), "data", 4), (Array("s32", (3,)), "data", 4)]
    (looped,) = (one for one in by_kind["all-reduce"] if one.runs == 12)
    assert looped.array == Array("bf16", (48, 4)) and looped.bytes == 12 * 2 * 48 * 4 and looped.axis == "data+fsdp"
    assert looped.source.endswith("blocks/mlp/fc1/dot_general") and looped.sent == 2 * 7 / 8 * looped.bytes
    (gather,), (scatter,), (permute,) = by_kind["all-gather"], by_kind["reduce-scatter"], by_kind["collective-permute"]
    assert gather.bytes == 400 and gather.axis == scatter.axis == "fsdp" and scatter.bytes == 400 and scatter.sent == 200
    assert permute.axis == "data" and permute.bytes == 200


def test_traffic_counts_the_slice_that_a_loop_takes():
    layer = 48 * 4 * 4
    inside = (layer + 4 + layer) + (layer + layer // 2) + (layer // 2 + layer // 2)  # fusion (with its index), convert, all-reduce
    outside = 2 * (400 + 12) + (200 + 600) + 2 * 200 + (400 + 200)  # the pair, the gather's start, the permute, the scatter
    assert hlo.traffic(hlo.parse(LOOP)) == 12 * inside + outside


@pytest.mark.parametrize(("dtype", "size"), [("pred", 3), ("bf16", 6), ("f32", 12), ("f64", 24), ("u8", 3), ("s64", 24), ("f8e4m3fn", 3)])
def test_sizes_of_types(dtype: str, size: int):
    assert Array(dtype, (3,)).bytes == size and Array(dtype, ()).bytes == size // 3 and Array(dtype, (3, 0)).bytes == 0
