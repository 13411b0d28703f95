"""FALinear computes feedback alignment, and is otherwise a drop-in for nn.Linear."""

import copy
import io
import os
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from fa_linear import FALinear, FALinearFunction

SHAPES = {"1-D": (6,), "2-D": (4, 6), "N-D": (2, 5, 4, 6), "empty": (0, 6)}


def pair(bias=True, **kwargs):
    """An FALinear and an nn.Linear with the same weights."""
    torch.manual_seed(0)
    fa, bp = FALinear(6, 3, bias, **kwargs), nn.Linear(6, 3, bias, **kwargs)
    bp.load_state_dict({k: v for k, v in fa.state_dict().items() if k != "feedback"})
    return fa, bp


def gradients(layer, input, error):
    """Gradients of <layer(input), error>: of the input, then of each parameter."""
    input = input.detach().requires_grad_()
    output = layer(input)
    wanted = [input, *(p for p in layer.parameters() if p.requires_grad)]
    return torch.autograd.grad(output, wanted, error.to(output.dtype))


def network():
    return nn.Sequential(nn.Linear(6, 5), FALinear(5, 3))


# Feedback alignment


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_differs_from_linear_in_the_input_gradient_alone(shape, bias):
    fa, bp = pair(bias)
    input, error = torch.randn(shape), torch.randn(*shape[:-1], 3)
    torch.testing.assert_close(fa(input), bp(input))
    fa_input, *fa_rest = gradients(fa, input, error)
    bp_input, *bp_rest = gradients(bp, input, error)
    assert len(fa_rest) == 1 + bias
    torch.testing.assert_close(fa_rest, bp_rest)
    torch.testing.assert_close(fa_input, error @ fa.feedback)
    torch.testing.assert_close(bp_input, error @ fa.weight)


@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 6)])
def test_passes_gradcheck_once_the_feedback_is_tied_to_the_weight(shape):
    torch.manual_seed(0)
    inputs = [torch.randn(s, dtype=torch.float64) for s in (shape, (3, 6), (3,))]

    def tied(input, weight, bias):
        return FALinearFunction.apply(input, weight, bias, weight.detach())

    inputs = [tensor.requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(tied, inputs)
    assert not torch.autograd.gradcheck(
        lambda *args: FALinearFunction.apply(*args, torch.ones_like(args[1])),
        inputs,
        raise_exception=False,
    )


def test_feedback_is_kaiming_uniform_a_buffer_and_drawn_anew_by_reset_parameters():
    torch.manual_seed(0)
    layer = FALinear(600, 50)
    bound = (6 / 600) ** 0.5
    assert layer.feedback.abs().max() <= bound
    assert layer.feedback.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert list(dict(layer.named_parameters())) == ["weight", "bias"]
    assert list(dict(layer.named_buffers())) == ["feedback"]
    before, buffer = layer.feedback.clone(), layer.feedback
    layer.reset_parameters()
    assert layer.feedback is buffer
    assert not torch.equal(layer.feedback, before)


def test_training_never_changes_the_feedback():
    layer = FALinear(6, 3)
    before = layer.feedback.clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=0.1)
    layer(torch.randn(4, 6)).sum().backward()
    optimizer.step()
    assert torch.equal(layer.feedback, before)


@pytest.mark.parametrize("rule", ["fa", "shallow"])
def test_the_papers_first_experiment(rule):
    """Lillicrap et al. 2016, Fig. 1: a 30-20-10 linear network learns a linear map."""
    torch.manual_seed(0)
    target = nn.init.uniform_(torch.empty(10, 30), -1, 1)
    hidden, read_out = nn.Linear(30, 20, bias=False), FALinear(20, 10, bias=False)
    nn.init.uniform_(hidden.weight, -0.01, 0.01)
    nn.init.uniform_(read_out.weight, -0.01, 0.01)
    nn.init.uniform_(read_out.feedback, -0.5, 0.5)
    hidden.requires_grad_(rule == "fa")
    net = nn.Sequential(hidden, read_out)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.005)

    def angle(error):
        fa, bp = error @ read_out.feedback, error @ read_out.weight
        return F.cosine_similarity(fa, bp).acos().rad2deg().mean().item()

    losses, angles = [], []
    for _ in range(2000):
        x = torch.randn(32, 30)
        error = net(x) - x @ target.T
        loss = error.square().sum(1).mean() / 2
        losses.append(loss.item())
        angles.append(angle(error.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert 75 < angles[0] < 105
    if rule == "fa":
        assert losses[-1] < losses[0] / 100
        assert angles[-1] < 45
    else:
        assert losses[-1] > losses[0] / 5


# A drop-in for nn.Linear


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((6, 3), {}),
        ((6, 3, False), {}),
        ((6, 3, True, "cpu", torch.float64), {}),
        ((), {"in_features": 6, "out_features": 3, "bias": False}),
        ((6,), {"out_features": 3, "device": "cpu", "dtype": torch.bfloat16}),
    ],
)
def test_is_constructed_and_called_as_linear_is(args, kwargs):
    fa, bp = FALinear(*args, **kwargs), nn.Linear(*args, **kwargs)
    assert repr(fa) == "FA" + repr(bp)
    assert (fa.bias is None) == (bp.bias is None)
    assert fa.weight.dtype == fa.feedback.dtype == bp.weight.dtype
    assert fa.feedback.shape == fa.weight.shape == bp.weight.shape
    input = torch.zeros(2, 6, dtype=bp.weight.dtype)
    torch.testing.assert_close(fa(input=input), fa(input))


def test_raises_linears_error_for_a_wrong_shape():
    fa, bp = pair()
    messages = []
    for layer in fa, bp:
        with pytest.raises(RuntimeError) as error:
            layer(torch.randn(4, 7))
        messages.append(str(error.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize(
    "convert",
    [
        lambda layer: layer.to(torch.float64),
        lambda layer: layer.double(),
        lambda layer: layer.bfloat16(),
    ],
    ids=["to", "double", "bfloat16"],
)
def test_conversions_move_the_feedback_too(convert):
    layer = convert(FALinear(6, 3))
    assert layer.feedback.dtype == layer.weight.dtype != torch.float32
    error = torch.randn(4, 3, dtype=layer.weight.dtype)
    input_grad, *_ = gradients(layer, torch.randn(4, 6).to(error.dtype), error)
    torch.testing.assert_close(input_grad, error @ layer.feedback)


def test_meta_device_then_to_empty_and_reset_parameters():
    layer = FALinear(6, 3, device="meta")
    assert layer.feedback.is_meta
    layer.to_empty(device="cpu").reset_parameters()
    assert 0 < layer.feedback.abs().max() <= 1
    assert layer(torch.randn(4, 6)).shape == (4, 3)


def round_trip_state_dict(layer):
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = FALinear(6, 3)
    other.load_state_dict(torch.load(file))
    return other


@pytest.mark.parametrize(
    "copied",
    [round_trip_state_dict, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
    ids=["state_dict", "deepcopy", "pickle"],
)
def test_copies_hold_the_same_feedback_of_their_own(copied):
    layer = FALinear(6, 3)
    other = copied(layer)
    input, error = torch.randn(4, 6), torch.randn(4, 3)
    expected = gradients(layer, input, error)
    layer.feedback.zero_()
    torch.testing.assert_close(gradients(other, input, error), expected)


def test_loads_linears_state_dict_and_keeps_its_own_feedback():
    layer, linear = FALinear(6, 3), nn.Linear(6, 3)
    feedback = layer.feedback.clone()
    with pytest.raises(RuntimeError, match="feedback"):
        layer.load_state_dict(linear.state_dict())
    result = layer.load_state_dict(linear.state_dict(), strict=False)
    assert (result.missing_keys, result.unexpected_keys) == (["feedback"], [])
    assert torch.equal(layer.weight, linear.weight)
    assert torch.equal(layer.feedback, feedback)


def test_autocast_gives_linears_gradients():
    fa, bp = pair()
    fa.feedback.copy_(fa.weight.detach())
    input, error = torch.randn(4, 6), torch.randn(4, 3)
    results = []
    for layer in fa, bp:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(input).dtype == torch.bfloat16
            results.append(gradients(layer, input, error))
    torch.testing.assert_close(results[0], results[1])
    assert {gradient.dtype for gradient in results[0]} == {torch.float32}


@pytest.mark.parametrize("weight_learns", [True, False])
@pytest.mark.parametrize("input_learns", [True, False])
def test_does_no_work_for_gradients_that_nobody_needs(weight_learns, input_learns):
    operations = []
    for layer in pair():
        layer.requires_grad_(weight_learns)
        input = torch.randn(4, 6, requires_grad=input_learns)
        with FlopCounterMode(display=False) as counter:
            output = layer(input)
            if output.requires_grad:
                output.sum().backward()
        operations.append(counter.get_total_flops())
    assert operations[0] == operations[1]
    assert operations[0] == 2 * 4 * 6 * 3 * (1 + weight_learns + input_learns)


def test_vmap_and_grad_over_an_ensemble():
    torch.manual_seed(0)
    networks = [network() for _ in range(3)]
    parameters, buffers = stack_module_state(networks)
    input = torch.randn(7, 6)

    def loss(parameters, buffers):
        state = (parameters, buffers)
        return functional_call(networks[0], state, (input,)).square().sum()

    stacked = vmap(grad(loss))(parameters, buffers)
    for index, net in enumerate(networks):
        net(input).square().sum().backward()
        for name, parameter in net.named_parameters():
            torch.testing.assert_close(stacked[name][index], parameter.grad)


def parameter_gradients(module, input):
    module.zero_grad()
    module(input).square().sum().backward()
    return [parameter.grad.clone() for parameter in module.parameters()]


def test_compiles_as_one_graph():
    torch.manual_seed(0)
    net, input = network(), torch.randn(7, 6)
    # aot_eager traces forward and backward as the default does, but needs no C++ compiler.
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        parameter_gradients(compiled, input), parameter_gradients(net, input)
    )


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(use_reentrant):
    torch.manual_seed(0)
    net, input = network(), torch.randn(7, 6, requires_grad=True)
    expected = parameter_gradients(net, input)
    net.zero_grad()
    output = checkpoint(net, input, use_reentrant=use_reentrant)
    output.square().sum().backward()
    torch.testing.assert_close([p.grad for p in net.parameters()], expected)


def distributed_worker(rank, folder):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    torch.manual_seed(rank)  # each rank starts with a feedback matrix of its own
    net = DistributedDataParallel(network())
    input = torch.linspace(-1, 1, 8 * 6).view(8, 6)
    net(input[rank::2]).square().mean().backward()
    gradients = [parameter.grad for parameter in net.parameters()]
    torch.save((net.module.state_dict(), gradients), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
    # Threads of Gloo may outlive the group; a normal exit sometimes aborts in them.
    os._exit(0)


def test_distributed_data_parallel(tmp_path):
    torch.multiprocessing.spawn(distributed_worker, (str(tmp_path),), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    state, gradients_of_two = results[0]
    net = network()
    net.load_state_dict(state)
    net(torch.linspace(-1, 1, 8 * 6).view(8, 6)).square().mean().backward()
    torch.testing.assert_close(gradients_of_two, [p.grad for p in net.parameters()])
