"""Kernels on one row at a time: RMSNorm with the residual, norms of heads, gated activation, rotation and KV write."""

import triton
import triton.language as tl


@triton.jit
def add_norm_kernel(
    residual,  # (rows, width)
    residual_stride,
    delta,  # (rows, width); not read without ADDS
    delta_stride,
    weight,  # (width,) float32
    out,  # (rows, width), contiguous
    width,
    eps,
    ADDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add a row of delta into the residual, and write the RMSNorm of the rounded sum."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    is_own = column < width
    x = tl.load(residual + row * residual_stride + column, mask=is_own, other=0.0).to(tl.float32)
    if ADDS:
        x += tl.load(delta + row * delta_stride + column, mask=is_own, other=0.0).to(tl.float32)
        rounded = x.to(residual.dtype.element_ty)
        tl.store(residual + row * residual_stride + column, rounded, mask=is_own)
        x = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / width + eps)
    normed = x * scale * tl.load(weight + column, mask=is_own, other=0.0)
    tl.store(out + row * width + column, normed.to(out.dtype.element_ty), mask=is_own)


@triton.jit
def norm_heads_kernel(y, y_stride, weight, column, head_dim, eps, BLOCK: tl.constexpr):
    """Replace one head of one row by its RMSNorm."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    number = tl.arange(0, BLOCK)
    is_own = number < head_dim
    place = y + row * y_stride + column + head * head_dim + number
    x = tl.load(place, mask=is_own, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / head_dim + eps)
    normed = x * scale * tl.load(weight + number, mask=is_own, other=0.0)
    tl.store(place, normed.to(y.dtype.element_ty), mask=is_own)


@triton.jit
def gated_silu_kernel(gate_up, gate_up_stride, out, width, BLOCK: tl.constexpr):
    """Write silu(gate) * up for one block of one row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_own = column < width
    gate = tl.load(gate_up + row * gate_up_stride + column, mask=is_own, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * gate_up_stride + width + column, mask=is_own, other=0.0).to(tl.float32)
    gated = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * width + column, gated.to(out.dtype.element_ty), mask=is_own)


@triton.jit
def rotate_and_store_kernel(
    qkv,  # (rows, (heads + 2 * kv_heads) * head_dim)
    qkv_stride,
    cos,  # (positions, head_dim // 2) float32
    sin,
    positions,  # (rows,) int32
    slots,  # (rows,) int64; below 0: the row's key and value are not written
    q,  # (rows, heads * head_dim), contiguous
    keys,  # (slots, kv_heads, head_dim)
    values,
    heads,
    kv_heads,
    half,
    ROTATES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rotate one head of q or k of one row, or copy one of v; q goes to `q`, k and v to the row's slot."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    number = tl.arange(0, BLOCK)
    is_own = number < half
    head_dim = 2 * half
    low_place = qkv + row * qkv_stride + head * head_dim + number
    low = tl.load(low_place, mask=is_own, other=0.0).to(tl.float32)
    high = tl.load(low_place + half, mask=is_own, other=0.0).to(tl.float32)
    if ROTATES:
        if head < heads + kv_heads:
            angle = tl.load(positions + row).to(tl.int64) * half + number
            own_cos = tl.load(cos + angle, mask=is_own, other=0.0)
            own_sin = tl.load(sin + angle, mask=is_own, other=0.0)
            rotated = low * own_cos - high * own_sin
            high = high * own_cos + low * own_sin
            low = rotated
    if head < heads:
        place = q + (row * heads + head) * head_dim + number
        tl.store(place, low.to(q.dtype.element_ty), mask=is_own)
        tl.store(place + half, high.to(q.dtype.element_ty), mask=is_own)
    else:
        slot = tl.load(slots + row)
        if head < heads + kv_heads:
            place = keys + (slot * kv_heads + head - heads) * head_dim + number
        else:
            place = values + (slot * kv_heads + head - heads - kv_heads) * head_dim + number
        is_kept = is_own & (slot >= 0)
        tl.store(place, low.to(keys.dtype.element_ty), mask=is_kept)
        tl.store(place + half, high.to(keys.dtype.element_ty), mask=is_kept)
