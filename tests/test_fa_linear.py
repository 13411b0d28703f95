"""FALinear computes feedback alignment, and is otherwise a drop-in for nn.Linear."""

import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian
from torch.func import grad, vmap
from torch.nn import functional as F
from torch.testing import assert_close

from fa_linear import FALinear

SHAPES = pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 5, 6), (0, 6)], ids=str)
BIASES = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])


def twins(bias=True):
    """Return an FALinear, and an nn.Linear with the same weights."""
    fa, bp = FALinear(6, 3, bias), nn.Linear(6, 3, bias)
    bp.load_state_dict(fa.state_dict(), strict=False)
    return fa, bp


def gradients(forward, weights, input, error):
    """Return the gradients that an error at the outputs gives: to the input, to each weight."""
    input = input.detach().requires_grad_()
    outputs = forward(input)
    return torch.autograd.grad(outputs, [input, *weights], error.to(outputs.dtype))


@SHAPES
@BIASES
def test_the_output_is_that_of_nn_linear(shape, bias):
    fa, bp = twins(bias)
    input = torch.randn(shape)
    assert_close(fa(input), bp(input))


@SHAPES
@BIASES
def test_the_message_is_the_error_times_b_and_the_weights_learn_as_those_of_nn_linear(shape, bias):
    fa, bp = twins(bias)
    input, error = torch.randn(shape), torch.randn(*shape[:-1], 3)
    _, *learned = gradients(bp, bp.parameters(), input, error)
    assert_close([*gradients(fa, fa.parameters(), input, error)], [error @ fa.feedback, *learned])


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_a_frozen_parameter_gets_no_gradient_and_the_other_does(frozen):
    layer = FALinear(6, 3)
    getattr(layer, frozen).requires_grad_(False)
    layer(torch.randn(4, 6)).sum().backward()
    assert [name for name, weight in layer.named_parameters() if weight.grad is None] == [frozen]


def test_the_exact_law_behind_alignment():
    """B^T dW = dV V^T + dc c^T, for any mini-batch and rate: plain SGD and a linear hidden layer."""
    network = nn.Sequential(nn.Linear(12, 7), FALinear(7, 4)).double()
    V, c, W, _ = (weight.detach().clone() for weight in network.parameters())
    F.cross_entropy(network(torch.randn(8, 12).double()), torch.arange(8) % 4).backward()
    torch.optim.SGD(network.parameters(), lr=10).step()
    new_V, new_c, new_W, _ = network.parameters()
    assert (new_W - W).norm() > 0.1
    law = (new_V - V) @ V.T + (new_c - c).outer(c)
    assert_close(network[1].feedback.T @ (new_W - W), law)


def test_a_network_whose_only_fa_layer_is_its_first_learns_by_bp():
    top, input, error = nn.Linear(3, 2), torch.randn(4, 6), torch.randn(4, 2)
    networks = [nn.Sequential(first, top) for first in twins()]
    fa, bp = (gradients(net, net.parameters(), input, error)[1:] for net in networks)
    assert_close(fa, bp, rtol=0, atol=0)


def test_a_seeded_layer_has_the_weights_of_a_seeded_nn_linear():
    weights = []
    for kind in FALinear, nn.Linear:
        torch.manual_seed(1)
        weights.append([*kind(6, 3).parameters()])
    assert_close(*weights, rtol=0, atol=0)


def test_b_is_drawn_from_the_distribution_of_w_and_independently():
    layer = FALinear(100, 1000)
    W, B = layer.weight.detach().flatten(), layer.feedback.flatten()
    assert_close(B.sort().values, W.sort().values, rtol=0, atol=0.002)  # of values up to 0.1
    assert abs(F.cosine_similarity(W, B, dim=0)) < 0.02


def test_reset_parameters_draws_another_b():
    layer = FALinear(6, 3)
    before = layer.feedback.clone()
    layer.reset_parameters()
    assert not torch.isclose(layer.feedback, before).any()


def test_b_is_saved_and_converted_with_the_layer_and_is_no_parameter():
    layer = FALinear(6, 3).double()
    assert layer.state_dict().keys() - dict(layer.named_parameters()) == {"feedback"}
    assert layer.feedback.dtype == torch.float64


def test_works_under_vmap_of_grad():
    layer, input = FALinear(6, 3), torch.randn(7, 6)
    messages = vmap(grad(lambda row: layer(row).square().sum()))(input)
    assert_close(messages, 2 * layer(input) @ layer.feedback)


def test_a_vectorised_jacobian_is_b():
    layer = FALinear(6, 3)
    assert_close(jacobian(layer, torch.randn(6), vectorize=True), layer.feedback)


@pytest.mark.parametrize("use", ["compile", "autocast"])
def test_works_under_compile_and_under_autocast_with_backward_outside_of_it(use):
    layer, input, error = FALinear(6, 3), torch.randn(7, 6), torch.randn(7, 3)
    if use == "compile":  # aot_eager traces as the default does, and needs no C++ compiler
        used = torch.compile(layer, fullgraph=True, backend="aot_eager")
    else:
        used = torch.autocast("cpu", dtype=torch.bfloat16)(layer)
    alone, under = (gradients(f, layer.parameters(), input, error) for f in (layer, used))
    assert_close(under, alone, rtol=0.02, atol=0.1)  # and of the same type, float32


# The limits that the docstring names


def test_second_derivatives_are_refused_or_for_a_constant_error_zero():
    layer, input = FALinear(6, 3), torch.randn(4, 6, requires_grad=True)
    (message,) = torch.autograd.grad(layer(input).norm(), input, create_graph=True)
    with pytest.raises(RuntimeError):
        message.norm().backward()
    (message,) = torch.autograd.grad(layer(input).sum(), input, create_graph=True)
    assert not message.requires_grad


def test_second_derivatives_are_zero_in_nested_torch_func_transforms():
    layer = FALinear(6, 3)
    message = grad(lambda input: layer(input).norm())
    assert not grad(lambda input: message(input).norm())(torch.randn(4, 6)).any()


def test_an_exported_layer_sends_bps_message():
    layer, input, error = FALinear(6, 3), torch.randn(4, 6), torch.randn(4, 3)
    exported = torch.export.export(layer, (input,), strict=False).module()
    assert_close(gradients(exported, [], input, error), (error @ layer.weight,))


def test_multihead_attention_sends_bps_message():
    attention, input, error = nn.MultiheadAttention(6, 2), torch.randn(4, 6), torch.randn(4, 6)
    messages = []
    for attention.out_proj in FALinear(6, 6), nn.Linear(6, 6):
        attention.out_proj.weight.data.copy_(torch.eye(6))
        messages += gradients(lambda x: attention(x, x, x)[0], [], input, error)
    assert_close(*messages)
