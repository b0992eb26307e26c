"""All dashboards, the overview first."""

from dashboards.panels import overview, processes, stream, synthesizer, training
from dashboards.panels.base import Board

BOARDS: tuple[Board, ...] = (overview.BOARD, training.BOARD, stream.BOARD, synthesizer.BOARD, processes.BOARD)
