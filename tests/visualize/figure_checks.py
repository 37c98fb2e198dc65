import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.contour import ContourSet


def panel_pixels(figure, axes):
    """RGB of one panel in [0, 1] without its letters, from the top left."""
    for text in axes.texts:
        text.set_visible(False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box = axes.get_window_extent()
    pixels = np.asarray(canvas.buffer_rgba())[::-1, :, :3] / 255
    return pixels[round(box.y0) : round(box.y1), round(box.x0) : round(box.x1)][::-1]


def outlines(axes):
    return {to_hex(item.get_edgecolor()[0]): item for item in axes.collections if isinstance(item, ContourSet)}


def extent(outline):
    """Smallest and largest x and y of an outline."""
    points = np.concatenate([path.vertices for path in outline.get_paths()])
    return [*points.min(axis=0), *points.max(axis=0)]
