"""The time loop on a GPU: one program a sequence, all steps inside, the kernel's weights on the chip throughout.

- Products. A state is a tile (N neurons, C channels), channels innermost, so one tap of the convolution is the product
  (N, C) x (C, C) of the tile moved around the ring by whole rows. In float32 `ieee` these are fused multiply-adds, so a
  shift stays exact; both operands of each are read from shared memory, which is what limits the kernels
  (results/roofline.md). `tf32` takes the tensor cores.
- Shift. Registers cannot be shifted: a program writes its state to memory (the backward wants it anyway), meets its own
  threads at a barrier, and reads the tile back a row further. The tap that needs no shift is multiplied meanwhile.
- Backward. The same loop from the last step to the first, with the transposed kernel. The gradient of the kernel is
  summed over all steps in registers, by groups of rows, as one batched product (C, rows) x (rows, C) a tap.

Axes: N neurons and C channels, both padded to powers of two of at least 16. Padding is loaded as zero, and what comes
of it stays zero.
`slots` are states in memory, (slot, sequence, neuron, C); slot 0 is the state before the first step.
With WRNN_TUNE=0 the first choice is taken untried, which tests are thankful for.
Under TRITON_INTERPRET=1, set before Triton is imported, all of this runs on the CPU, in numpy.
"""

import itertools
import os

import triton
import triton.language as tl
from triton import knobs

_SIZES = ["neurons", "batch", "GPU", "FEATURES", "NONLINEARITY", "TAPS", "C", "PRECISION"]
_VARYING = ["steps", "neurons", "batch", "turns", "x_batch", "x_step", "x_feature"]
_NUMBERS_A_THREAD = (8, 16)  # with 32 the backward spills kilobytes, and takes longest to compile


def _choices(**options):
    """Arguments of `autotune`: at most six choices at a new size, kept on disk by GPU, sizes, version and source."""
    configs = [
        triton.Config(dict(zip(options, values, strict=True)), num_warps=warps, num_stages=1)
        for warps in (8, 4, 16, 2, 1)
        for values in itertools.product(*options.values())
    ]
    if knobs.runtime.interpret:  # numpy has no warps
        return {"configs": configs[:1]}
    found = {"configs": configs, "prune_configs_by": {"early_config_prune": _sensible}, "cache_results": True}
    if os.environ.get("WRNN_TUNE") == "0":  # Triton times a single choice too, before 3.8
        found["do_bench"] = lambda _, quantiles: [0.0] * len(quantiles)
    return found


def _sensible(configs, _, **options):
    least, most = _NUMBERS_A_THREAD
    numbers = {config: options["N"] * options["C"] // (32 * config.num_warps) for config in configs}
    warps = max(config.num_warps for config in configs)
    found = [c for c in configs if least <= numbers[c] <= most or (numbers[c] > most and c.num_warps == warps)]
    return found[:1] if os.environ.get("WRNN_TUNE") == "0" else found


@triton.jit
def neighbours(source, row, live, offset: tl.constexpr, neurons, C: tl.constexpr):
    """The rows `offset` further along a ring in memory, (N, C)."""
    shifted = row + offset
    shifted = tl.where(shifted < 0, shifted + neurons, shifted)
    shifted = tl.where(shifted < neurons, shifted, shifted - neurons)
    return tl.load(source + shifted[:, None] * C + tl.arange(0, C)[None, :], mask=live, other=0.0)


@triton.jit
def factor(tile, PRECISION: tl.constexpr):
    """The tile as it enters a product: for tf32 rounded to the nearest of 10 bits; a nan stays one.

    The tensor cores would cut the other bits off, which adds up to a leak over many steps.
    """
    if PRECISION == "tf32":
        nearest = (tile.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
        tile = tl.where(tile == tile, nearest.to(tl.float32, bitcast=True), tile)
    return tile


@triton.jit
def late(tile, PRECISION: tl.constexpr):
    """The same of a loaded tile, waited for here and not where it is loaded, as the compiler would have it.

    The product of the tap that needs no shift is then done while the others' tiles are on their way.
    """
    return factor(tile + 0.0, PRECISION)


@triton.jit
def tanh(x):
    """Within some roundings of the true value at every size: a polynomial near zero, else by exp."""
    x = tl.where(x > 10, 10.0, tl.where(x < -10, -10.0, x))
    square = x * x
    series = -5.70498872745e-3 * square + 2.06390887954e-2
    series = (series * square - 5.37397155531e-2) * square + 1.33314422036e-1
    near = x + x * square * (series * square - 3.33332819422e-1)
    far = 1 - 2 / (tl.exp(2 * tl.abs(x)) + 1)
    return tl.where(tl.abs(x) < 0.625, near, tl.where(x < 0, -far, far))


@triton.autotune(key=_SIZES, **_choices())
@triton.jit(do_not_specialize=_VARYING)
def advance(
    x,  # of the first step; strides x_batch, x_step, x_feature; None with a finished drive
    weight,  # (FEATURES, neurons, C), or None
    drive,  # (steps, batch, neurons, C), without the batch if SHARED; or None
    bias,  # (neurons, C)
    kernel,  # (TAPS, C in, C out)
    slots,  # (1 + turns, batch, neurons, C); the state after step t goes to slot 1 + t % turns
    steps,
    neurons,
    batch,
    turns,
    x_batch,
    x_step,
    x_feature,
    GPU: tl.constexpr,
    EXACT: tl.constexpr,
    SHARED: tl.constexpr,
    FEATURES: tl.constexpr,
    NONLINEARITY: tl.constexpr,
    TAPS: tl.constexpr,
    N: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Run steps forward; the axis of the grid is the sequence."""
    sequence = tl.cast(tl.program_id(0), tl.int64)
    row, channel = tl.arange(0, N), tl.arange(0, C)
    half: tl.constexpr = TAPS // 2
    live = (row < (N if EXACT else neurons))[:, None]  # all of them, known when compiling, or not
    tile = row[:, None] * C + channel[None, :]
    slot = tl.cast(batch, tl.int64) * neurons * C
    own = sequence * neurons * C
    drive_step, drive_own = slot, own
    if SHARED:
        drive_step, drive_own = tl.cast(neurons, tl.int64) * C, 0
    bias_tile = tl.load(bias + tile, mask=live, other=0.0)
    weights, taps = (), ()
    for i in tl.static_range(FEATURES):
        weights = weights + (tl.load(weight + i * neurons * C + tile, mask=live, other=0.0),)
    for k in tl.static_range(TAPS):
        taps = taps + (factor(tl.load(kernel + (k * C + channel[:, None]) * C + channel[None, :]), PRECISION),)
    source = slots + own
    state = tl.load(source + tile, mask=live, other=0.0)
    for t in range(steps):
        around = ()
        for k in tl.static_range(TAPS):
            if k == half:
                around = around + (state,)
            else:
                around = around + (neighbours(source, row, live, k - half, neurons, C),)
        total = bias_tile
        for i in tl.static_range(FEATURES):
            total += tl.load(x + sequence * x_batch + tl.cast(t, tl.int64) * x_step + i * x_feature) * weights[i]
        if drive is not None:
            total += tl.load(drive + t * drive_step + drive_own + tile, mask=live, other=0.0)
        total = tl.dot(factor(state, PRECISION), taps[half], total, input_precision=PRECISION)
        for k in tl.static_range(TAPS):
            if k != half:
                total = tl.dot(late(around[k], PRECISION), taps[k], total, input_precision=PRECISION)
        if NONLINEARITY == "relu":
            state = tl.where(total <= 0, 0.0, total)  # not a maximum, which would hide a nan
        elif NONLINEARITY == "tanh":
            state = tanh(total)
        else:
            state = total
        source = slots + (1 + t % turns) * slot + own
        tl.store(source + tile, state, mask=live)
        tl.debug_barrier()


@triton.autotune(
    key=[*_SIZES, "SUMS_KERNEL"], restore_value=["grad_weight", "grad_bias", "grad_kernel"], **_choices(ROWS=(16, 32))
)
@triton.jit(do_not_specialize=_VARYING)
def go_back(
    x,
    grad_last,  # (batch, neurons, C): of the state after the last of these steps
    grad_states,  # (steps, batch, neurons, C): what else reaches the states; or None
    kernel,  # (TAPS, C out, C in)
    slots,  # (1 + steps, batch, neurons, C): all states
    grad_first,  # (batch, neurons, C): of the state before the first of these steps
    grad_drive,  # (turns, batch, neurons, C): the gradient before the nonlinearity of step t goes to t % turns
    grad_weight,  # (batch, FEATURES, neurons, C); this and the next two are added to
    grad_bias,  # (batch, neurons, C)
    grad_kernel,  # (batch, TAPS, C in, C out)
    steps,
    neurons,
    batch,
    turns,
    x_batch,
    x_step,
    x_feature,
    GPU: tl.constexpr,
    EXACT: tl.constexpr,
    SUMS_KERNEL: tl.constexpr,
    FEATURES: tl.constexpr,
    NONLINEARITY: tl.constexpr,
    TAPS: tl.constexpr,
    N: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Run the adjoint of `advance`, last step first; ROWS neurons make a group for the sum over neurons."""
    sequence = tl.cast(tl.program_id(0), tl.int64)
    row, channel = tl.arange(0, N), tl.arange(0, C)
    half: tl.constexpr = TAPS // 2
    live = (row < (N if EXACT else neurons))[:, None]  # all of them, known when compiling, or not
    tile = row[:, None] * C + channel[None, :]
    slot = tl.cast(batch, tl.int64) * neurons * C
    own = sequence * neurons * C
    rows: tl.constexpr = ROWS if ROWS < N else N
    groups: tl.constexpr = N // rows
    square = channel[:, None] * C + channel[None, :]
    bias_sum = tl.load(grad_bias + own + tile, mask=live, other=0.0)
    weight_sums, taps, kernel_sums = (), (), ()
    for i in tl.static_range(FEATURES):
        weight_at = grad_weight + (sequence * FEATURES + i) * neurons * C + tile
        weight_sums = weight_sums + (tl.load(weight_at, mask=live, other=0.0),)
    for k in tl.static_range(TAPS):
        taps = taps + (factor(tl.load(kernel + k * C * C + square), PRECISION),)
        kernel_sums = kernel_sums + (tl.zeros((groups, C, C), tl.float32),)
    source = slots + steps * slot + own
    state = tl.load(source + tile, mask=live, other=0.0)
    gradient = tl.load(grad_last + own + tile, mask=live, other=0.0)
    for back in range(steps):
        t = steps - 1 - back
        if grad_states is not None:
            gradient += tl.load(grad_states + t * slot + own + tile, mask=live, other=0.0)
        if NONLINEARITY == "relu":
            gradient = tl.where(state <= 0, 0.0, gradient)
        elif NONLINEARITY == "tanh":
            gradient = gradient * (1 - state * state)
        drive_at = grad_drive + (t % turns) * slot + own
        tl.store(drive_at + tile, gradient, mask=live)
        source -= slot
        state = tl.load(source + tile, mask=live, other=0.0)
        bias_sum += gradient
        weight_next = ()
        for i in tl.static_range(FEATURES):
            number = tl.load(x + sequence * x_batch + tl.cast(t, tl.int64) * x_step + i * x_feature)
            weight_next = weight_next + (weight_sums[i] + number * gradient,)
        weight_sums = weight_next
        tl.debug_barrier()
        around = ()
        for k in tl.static_range(TAPS):
            if k == half:
                around = around + (gradient,)
            else:
                around = around + (neighbours(drive_at, row, live, half - k, neurons, C),)
        centre = kernel_sums[half]
        other = factor(gradient, PRECISION)
        if SUMS_KERNEL:
            before = tl.permute(tl.reshape(factor(state, PRECISION), (groups, rows, C)), (0, 2, 1))
            after = tl.reshape(other, (groups, rows, C))
        gradient = tl.dot(other, taps[half], input_precision=PRECISION)
        if SUMS_KERNEL:
            centre = tl.dot(before, after, centre, input_precision=PRECISION)
        kernel_next = ()
        for k in tl.static_range(TAPS):
            if k == half:
                kernel_next = kernel_next + (centre,)
            else:
                other = late(around[k], PRECISION)
                gradient = tl.dot(other, taps[k], gradient, input_precision=PRECISION)
                if SUMS_KERNEL:
                    after = tl.reshape(other, (groups, rows, C))
                    kernel_next = kernel_next + (tl.dot(before, after, kernel_sums[k], input_precision=PRECISION),)
                else:
                    kernel_next = kernel_next + (kernel_sums[k],)
        kernel_sums = kernel_next
    tl.store(grad_first + own + tile, gradient, mask=live)
    tl.store(grad_bias + own + tile, bias_sum, mask=live)
    for i in tl.static_range(FEATURES):
        tl.store(grad_weight + (sequence * FEATURES + i) * neurons * C + tile, weight_sums[i], mask=live)
    if SUMS_KERNEL:
        for k in tl.static_range(TAPS):
            kernel_at = grad_kernel + (sequence * TAPS + k) * C * C + square
            tl.store(kernel_at, tl.load(kernel_at) + tl.sum(kernel_sums[k], axis=0))
