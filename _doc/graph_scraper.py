"""Takes pictures of graphs out of the examples: what a block calls ``picture`` is shown behind it as SVG."""

from pathlib import Path

from sphinx_gallery.scrapers import figure_rst


class GraphScraper:
    """A scraper of sphinx-gallery."""

    def __repr__(self):
        return "GraphScraper()"

    def __call__(self, block, block_vars, gallery_conf):
        picture = block_vars["example_globals"].pop("picture", None)
        if not hasattr(picture, "dot"):
            return ""
        path = Path(next(block_vars["image_path_iterator"])).with_suffix(".svg")
        return figure_rst([str(picture.save(path))], gallery_conf["src_dir"])


def _get_sg_image_scraper():
    """What sphinx-gallery asks a module for that is named among its ``image_scrapers``."""
    return GraphScraper()
