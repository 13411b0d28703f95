"""FALinear computes feedback alignment, and is otherwise a drop-in for nn.Linear."""

import pytest
import torch
from torch import nn
from torch.func import grad, jvp, vmap
from torch.nn import functional as F

from fa_linear import FALinear


def pair(bias=True):
    """An FALinear and an nn.Linear with the same weights."""
    torch.manual_seed(0)
    fa, bp = FALinear(6, 3, bias), nn.Linear(6, 3, bias)
    feedback = fa.feedback.clone()
    fa.load_state_dict(bp.state_dict(), strict=False)
    assert torch.equal(fa.feedback, feedback)  # it stays as drawn
    return fa, bp


def gradients(layer, input, error, autocast=False):
    """Gradients of <layer(input), error>: of the input, then of each parameter."""
    input = input.detach().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        output = layer(input)
    return torch.autograd.grad(output, [input, *layer.parameters()], error.to(output.dtype))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 5, 4, 6), (0, 6)])
def test_the_input_gradient_is_error_times_feedback_and_nothing_else_differs(shape, bias):
    fa, bp = pair(bias)
    input, error = torch.randn(shape), torch.randn(*shape[:-1], 3)
    torch.testing.assert_close(fa(input), bp(input))
    fa_input, *fa_rest = gradients(fa, input, error)
    bp_input, *bp_rest = gradients(bp, input, error)
    torch.testing.assert_close(fa_input, error @ fa.feedback)
    torch.testing.assert_close(bp_input, error @ fa.weight)
    torch.testing.assert_close(fa_rest, bp_rest)
    assert len(fa_rest) == 1 + bias
    fa(input).backward(error)  # as a first layer, whose input has no gradient
    torch.testing.assert_close([p.grad for p in fa.parameters()], bp_rest)


def test_feedback_is_drawn_as_the_weight_is_but_independently_and_anew_by_reset_parameters():
    torch.manual_seed(0)
    layer = FALinear(600, 50)
    before = layer.feedback.clone()
    layer.reset_parameters()
    for draw in before, layer.feedback, layer.weight:
        assert 0.99 < draw.abs().max() * 600**0.5 <= 1
        assert draw.std().item() == pytest.approx((3 * 600) ** -0.5, rel=0.02)
    draws = torch.stack([before, layer.feedback, layer.weight]).flatten(start_dim=1)
    assert (torch.corrcoef(draws) - torch.eye(3)).abs().max() < 0.03  # 5 / sqrt(30,000)


def test_the_feedback_is_saved_converted_and_moved_with_the_weights_but_not_trained():
    layer = FALinear(6, 3, device="meta", dtype=torch.float64)
    assert (layer.feedback.device, layer.feedback.dtype) == (layer.weight.device, torch.float64)
    layer.to_empty(device="cpu").reset_parameters()
    twin = FALinear(6, 3).double()
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin.feedback, layer.feedback)
    error = torch.randn(4, 3, dtype=torch.float64)
    input_gradient, *_ = gradients(twin, torch.randn(4, 6, dtype=torch.float64), error)
    torch.testing.assert_close(input_gradient, error @ layer.feedback)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]


def test_the_exact_law_behind_alignment():
    """Any mini-batch and step size: only plain SGD and the linear hidden layer are assumed."""
    network = nn.Sequential(nn.Linear(12, 7), FALinear(7, 4)).double()
    W0, b0, W, _b = (parameter.detach().clone() for parameter in network.parameters())
    F.cross_entropy(network(torch.randn(8, 12).double()), torch.arange(8) % 4).backward()
    torch.optim.SGD(network.parameters(), lr=10).step()
    W0_now, b0_now, W_now, _b = (parameter.detach() for parameter in network.parameters())
    overlap = network[1].feedback.T @ (W_now - W)
    hidden = W0_now @ W0_now.T - W0 @ W0.T + b0_now.outer(b0_now) - b0.outer(b0)
    squares = (W0_now - W0) @ (W0_now - W0).T + (b0_now - b0).outer(b0_now - b0)
    assert min(squares.norm(), overlap.norm()) > 0.1
    torch.testing.assert_close(overlap + overlap.T, hidden - squares, rtol=0, atol=1e-10)


def test_autocast_gives_linears_gradients():
    fa, bp = pair()
    fa.feedback.copy_(fa.weight.detach())
    input, error = torch.randn(4, 6), torch.randn(4, 3)
    results = [gradients(layer, input, error, autocast=True) for layer in (fa, bp)]
    torch.testing.assert_close(results[0], results[1])
    assert {gradient.dtype for gradient in results[0]} == {torch.float32}


def test_works_under_vmap_and_compile():
    layer, inputs = FALinear(6, 3), torch.randn(7, 6)
    gradients_of_examples = vmap(grad(lambda input: layer(input).square().sum()))(inputs)
    torch.testing.assert_close(gradients_of_examples, 2 * layer(inputs) @ layer.feedback)
    # aot_eager traces forward and backward as the default does, but needs no C++ compiler.
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results = [gradients(each, inputs, torch.ones(7, 3)) for each in (compiled, layer)]
    torch.testing.assert_close(*results)


def test_what_feedback_alignment_is_not_defined_for_is_refused_or_as_the_docstring_says():
    layer, input = FALinear(6, 3), torch.randn(4, 6, requires_grad=True)
    with pytest.raises(NotImplementedError, match="forward mode"):
        jvp(layer, (input,), (input,))
    with pytest.raises(TypeError, match="real numbers"):
        FALinear(6, 3, dtype=torch.complex64)(input.to(torch.complex64))
    (message,) = torch.autograd.grad(layer(input).square().sum(), input, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        message.square().sum().backward()
    (message,) = torch.autograd.grad(layer(input).sum(), input, create_graph=True)
    assert not message.requires_grad
    assert not grad(lambda input: grad(lambda x: layer(x).square().sum())(input).sum())(input).any()
    exported = torch.export.export(layer, (input,), strict=False).module()
    (gradient,) = torch.autograd.grad(exported(input).sum(), input)
    torch.testing.assert_close(gradient, torch.ones(4, 3) @ layer.weight)
