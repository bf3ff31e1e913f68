"""Operations counted in a jaxpr, against formulas by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sere_jax.models.vit import ViT
from sere_jax.train.arithmetic import matmul_operations

# Of a micro ViT on 2 images of 16 x 16 pixels in patches of 4.
WIDTH, DEPTH, HEADS, PATCH, IMAGES, TOKENS = 24, 2, 2, 4, 2, 17


def _vit(**options: object) -> tuple[ViT, jax.Array]:
    return ViT(width=WIDTH, depth=DEPTH, heads=HEADS, patch_size=PATCH, image_size=16, **options), jnp.zeros((IMAGES, 16, 16, 3))


def _forward_by_hand() -> int:
    """Twelve widths squared a token for qkv (3), projection (1) and perceptron (8), and two products of tokens by tokens."""
    block = 12 * WIDTH**2 * TOKENS + 2 * TOKENS**2 * WIDTH
    embedding = (TOKENS - 1) * 3 * PATCH**2 * WIDTH
    return 2 * IMAGES * (DEPTH * block + embedding)


def test_a_vit_forward_and_backward():
    """The backward pass has two products for each one, but none for the gradient of the pixels."""
    vit, images = _vit(scan_blocks=True)
    params = jax.eval_shape(vit.init, jax.random.key(0), images)
    assert matmul_operations(jax.make_jaxpr(vit.apply)(params, images)) == _forward_by_hand()

    def loss(params: object) -> jax.Array:
        return jnp.sum(vit.apply(params, images).patches ** 2)

    pixels = 2 * IMAGES * (TOKENS - 1) * 3 * PATCH**2 * WIDTH
    assert matmul_operations(jax.make_jaxpr(jax.grad(loss))(params)) == 3 * _forward_by_hand() - pixels


def test_a_convolution_counts_its_kernel_for_each_output():
    kernel, image = jnp.zeros((3, 5, 4, 7)), jnp.zeros((2, 9, 11, 4))
    traced = jax.make_jaxpr(lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")))
    assert matmul_operations(traced(image, kernel)) == 2 * (2 * 7 * 7 * 7) * (3 * 5 * 4)


def test_branches_and_recomputation():
    square = jnp.zeros((4, 4))
    one = 2 * 4**3

    def branch(x: jax.Array) -> jax.Array:
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x, x)

    assert matmul_operations(jax.make_jaxpr(branch)(square)) == 2 * one
    again = jax.grad(lambda x: jnp.sum(jax.checkpoint(lambda x: jnp.sin(x @ x))(x)))
    assert matmul_operations(jax.make_jaxpr(again)(square)) == 4 * one  # forward, once more, and two backward
