"""Pictures of trainings and graphs. matplotlib and Graphviz are needed when one is drawn, not before."""

from .graphs import GraphPicture, plot_graph
from .history import plot_history
from .weights import plot_weight_changes

__all__ = ["GraphPicture", "plot_graph", "plot_history", "plot_weight_changes"]
