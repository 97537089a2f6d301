"""JAX: jit of vmap over members of a scan over steps, everything on the device, compiled before it is timed.

The order is drawn by NumPy outside (jax.random.permutation inside costs more), and no loss value is asked for.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import digits
from benchmarks.work import serve

x, y = map(jnp.asarray, digits.data())
steps = len(x) // digits.BATCH


def loss(params, batch, classes):
    w1, b1, w2, b2 = params
    logits = jax.nn.relu(batch @ w1.T + b1) @ w2.T + b2
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), classes[:, None], axis=1).mean()


def one(params, order):
    def step(params, rows):
        gradients = jax.grad(loss)(params, x[rows], y[rows])
        return [p - digits.RATE * g for p, g in zip(params, gradients, strict=True)], None

    return jax.lax.scan(step, params, order)[0]


everyone = jax.jit(jax.vmap(one))
rng = np.random.default_rng(0)


def work() -> None:
    order = np.broadcast_to(np.arange(len(x), dtype=np.int32), (digits.EPOCHS * digits.MEMBERS, len(x)))
    order = rng.permuted(order, axis=1).reshape(digits.MEMBERS, digits.EPOCHS, -1)[
        :, :, : steps * digits.BATCH
    ]
    params = [jnp.asarray(array) for array in digits.initial()]
    jax.block_until_ready(everyone(params, jnp.asarray(order.reshape(digits.MEMBERS, -1, digits.BATCH))))


if __name__ == "__main__":
    serve(work)
