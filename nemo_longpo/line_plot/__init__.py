"""Lines over two axes: as SVG that follows a light or dark page and loads nothing, and as PNG."""
