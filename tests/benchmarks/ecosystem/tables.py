"""Tables, Gaussian processes and graphs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from blind.programs_base import patients
from ecosystem.data import endless, explained, hits, loader, table
from ecosystem.images import crossed
from ecosystem.task import Learner, Program, Rule, Task
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Adam, AdamW


def tabnet() -> Task:
    """Classify digits with the settings of pytorch-tabnet."""
    from pytorch_tabnet.tab_network import TabNet

    data = table()
    network = TabNet(64, 10, group_attention_matrix=torch.eye(64))

    def loss(network: Any, batch: list[Tensor]) -> Tensor:
        output, sparsity = network(batch[0])
        return functional.cross_entropy(output, batch[1]) - 1e-3 * sparsity

    def score() -> float:
        return hits(network(data.test_inputs)[0], data.test_targets)

    feed = loader(data.inputs, data.targets, batch=256)
    return Task(Learner(network, loss, partial(Adam, lr=2e-2)), feed, score, 150, {"gradient_clip_val": 1.0})


class Numbers(nn.Module):
    """A model of RTDL that takes numbers and categories, for numbers alone."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, inputs: Tensor) -> Tensor:
        return self.body(inputs, None)


def rtdl(kind: str, steps: int = 150, **config: Any) -> Task:
    """Classify digits by their 64 numbers."""
    import rtdl_revisiting_models as models

    data = table()
    if kind == "FTTransformer":
        settings = {**models.FTTransformer.get_default_kwargs(1), "d_block": 32, **config}
        settings = {name: value for name, value in settings.items() if not name.startswith("_")}
        network: Any = Numbers(models.FTTransformer(n_cont_features=64, cat_cardinalities=[], d_out=10, **settings))
        rule: Rule = partial(AdamW, lr=1e-3, weight_decay=1e-5)
    else:
        network = getattr(models, kind)(d_in=64, d_out=10, **config)
        rule = partial(AdamW, lr=1e-3, weight_decay=1e-5)

    def score() -> float:
        return hits(network(data.test_inputs), data.test_targets)

    return Task(Learner(network, crossed, rule), loader(data.inputs, data.targets, batch=64), score, steps)


def exact_process() -> Task:
    """Fit the hyperparameters of the exact Gaussian process of gpytorch's first tutorial."""
    import gpytorch

    made = torch.Generator().manual_seed(0)
    x = torch.linspace(0, 1, 100)
    y = torch.sin(6.28 * x) + 0.2 * torch.randn(100, generator=made)

    class Process(gpytorch.models.ExactGP):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(x, y, gpytorch.likelihoods.GaussianLikelihood())
            self.mean_module = gpytorch.means.ConstantMean()
            self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())

        def forward(self, x: Tensor) -> Any:
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    network = Process()
    marginal = gpytorch.mlls.ExactMarginalLogLikelihood(network.likelihood, network)

    def loss(network: Any, batch: Any) -> Tensor:
        return -marginal(network(x), y)

    def score() -> float:
        network.train()
        return float(loss(network, None))

    return Task(Learner(network, loss, partial(Adam, lr=0.1)), endless(lambda: 0), score, 60)


def variational_process() -> Task:
    """Fit a stochastic variational Gaussian process to the diabetes patients."""
    import gpytorch

    data = patients()
    inputs, targets = data.inputs, data.targets[:, 0]

    class Process(gpytorch.models.ApproximateGP):  # type: ignore[misc]
        def __init__(self) -> None:
            points = inputs[:50].clone()
            shape = gpytorch.variational.CholeskyVariationalDistribution(50)
            super().__init__(
                gpytorch.variational.VariationalStrategy(self, points, shape, learn_inducing_locations=True)
            )
            self.mean_module = gpytorch.means.ConstantMean()
            self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())
            self.likelihood = gpytorch.likelihoods.GaussianLikelihood()

        def forward(self, x: Tensor) -> Any:
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    network = Process()
    bound = gpytorch.mlls.VariationalELBO(network.likelihood, network, len(inputs))

    def loss(network: Any, batch: list[Tensor]) -> Tensor:
        return -bound(network(batch[0]), batch[1])

    def score() -> float:
        return explained(network(data.test_inputs).mean, data.test_targets[:, 0])

    return Task(Learner(network, loss, partial(Adam, lr=0.01)), loader(inputs, targets, batch=64), score, 200)


def community(count: int = 300, classes: int = 4) -> Any:
    """Return a graph of communities with noisy features, half of whose nodes are known."""
    from torch_geometric.data import Data
    from torch_geometric.utils import stochastic_blockmodel_graph

    torch.manual_seed(0)
    inside = 0.08 * torch.eye(classes) + 0.01
    edges = stochastic_blockmodel_graph([count // classes] * classes, inside)
    labels = torch.arange(classes).repeat_interleave(count // classes)
    features = functional.one_hot(labels, 16).float() + torch.randn(count, 16)
    return Data(features, edges, y=labels, train_mask=torch.rand(count) < 0.5)


class Layers(nn.Module):
    """Two layers of torch_geometric, as its introduction has them."""

    def __init__(self, first: Callable[..., nn.Module], second: Callable[..., nn.Module], hidden: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = first(), second()
        self.hidden = hidden

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x = functional.dropout(x, 0.5, self.training)
        x = functional.relu(self.conv1(x, edges))
        return self.conv2(functional.dropout(x, 0.5, self.training), edges)


CITING = partial(Adam, lr=0.01, weight_decay=5e-4)  # of the examples on citations


def nodes(kind: str, rule: Rule = CITING, steps: int = 150, **config: Any) -> Task:
    """Classify the nodes of a graph."""
    from torch_geometric import nn as layers

    seed = torch.initial_seed()
    graph = community()
    torch.manual_seed(seed)
    network: Any = getattr(layers.models, kind)(16, 16, num_layers=2, out_channels=4, dropout=0.5, **config)
    known = graph.train_mask

    def loss(network: Any, batch: Any) -> Tensor:
        return functional.cross_entropy(network(graph.x, graph.edge_index)[known], graph.y[known])

    def score() -> float:
        return hits(network(graph.x, graph.edge_index)[~known], graph.y[~known])

    return Task(Learner(network, loss, rule), endless(lambda: 0), score, steps)


def links() -> Task:
    """Rebuild the links of a graph with the variational autoencoder of torch_geometric's examples."""
    from torch_geometric.nn import VGAE, GCNConv

    seed = torch.initial_seed()
    graph = community()
    torch.manual_seed(seed)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = GCNConv(16, 32)
            self.conv_mu, self.conv_logstd = GCNConv(32, 16), GCNConv(32, 16)

        def forward(self, x: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
            x = self.conv1(x, edges).relu()
            return self.conv_mu(x, edges), self.conv_logstd(x, edges)

    network: Any = VGAE(Encoder())

    def loss(network: Any, batch: Any) -> Tensor:
        z = network.encode(graph.x, graph.edge_index)
        return network.recon_loss(z, graph.edge_index) + network.kl_loss() / graph.num_nodes

    def score() -> float:
        return float(network.recon_loss(network.encode(graph.x, graph.edge_index), graph.edge_index))

    return Task(Learner(network, loss, partial(Adam, lr=0.01)), endless(lambda: 0), score, 150)


def rings() -> Task:
    """Tell rings with a chord from rings without one, with GIN and a sum over the nodes."""
    from torch_geometric.data import Data
    from torch_geometric.loader import DataLoader
    from torch_geometric.nn import GIN, MLP, global_add_pool

    made, graphs = torch.Generator().manual_seed(0), []
    for at in range(400):
        count = int(torch.randint(6, 14, (1,), generator=made))
        ring = torch.stack([torch.arange(count), (torch.arange(count) + 1) % count])
        chord = torch.tensor([[0], [count // 2]]) if at % 2 else torch.empty(2, 0, dtype=torch.long)
        edges = torch.cat([ring, ring.flip(0), chord, chord.flip(0)], 1)
        graphs.append(Data(torch.ones(count, 1), edges, y=torch.tensor([at % 2])))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gnn, self.classifier = GIN(1, 32, 3, dropout=0.0), MLP([32, 32, 2], norm="batch_norm", dropout=0.0)

        def forward(self, batch: Any) -> Tensor:
            x = self.gnn(batch.x, batch.edge_index)
            return self.classifier(global_add_pool(x, batch.batch))

    network = Net()

    def loss(network: Any, batch: Any) -> Tensor:
        return functional.cross_entropy(network(batch), batch.y)

    def score() -> float:
        held = next(iter(DataLoader(graphs[300:], batch_size=100)))
        return hits(network(held), held.y)

    return Task(
        Learner(network, loss, partial(Adam, lr=0.01)),
        DataLoader(graphs[:300], batch_size=32, shuffle=True),
        score,
        100,
    )


first = partial(Program, "torch_geometric")
process = partial(Program, "gpytorch")

TABLES: dict[str, Program] = {
    "TabNet": Program("pytorch_tabnet", "the README: its rate, batches and sparsity", tabnet, "accuracy", 0.7),
    "FT-Transformer": Program(
        "rtdl_revisiting_models", "the README's example", partial(rtdl, "FTTransformer", 80), "accuracy", 0.7,
    ),
    "ResNet of RTDL": Program(
        "rtdl_revisiting_models", "the README's example",
        partial(rtdl, "ResNet", n_blocks=2, d_block=64, d_hidden=None, d_hidden_multiplier=2.0, dropout1=0.3,
                dropout2=0.0),
        "accuracy", 0.8,
    ),
    "exact Gaussian process": process("the tutorial Simple_GP_Regression", exact_process, "loss", 0.2),
    "variational Gaussian process": process("the tutorial SVGP_Regression", variational_process, "R2", 0.3),
    "GCN": first("the introduction by example", partial(nodes, "GCN"), "accuracy", 0.7),
    "GAT": first(
        "examples/gat.py", partial(nodes, "GAT", partial(Adam, lr=0.005, weight_decay=5e-4), heads=4), "accuracy", 0.7,
    ),
    "GraphSAGE": first("examples/graph_sage_unsup.py's network", partial(nodes, "GraphSAGE"), "accuracy", 0.7),
    "VGAE": first("examples/autoencoder.py", links, "loss", 1.2),
    "GIN": first("examples/mutag_gin.py", rings, "accuracy", 0.8),
}  # fmt: skip
