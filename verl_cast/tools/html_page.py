"""Renders the pages of `report` and `diagnose`. Each is one file that contains plotly.js and needs no network."""

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs


def render(package: str, template: str, filters: dict, **values) -> str:
    """A page from a template of a package.

    Args:
        package: the package that holds the template, such as `verl_cast.tools.report`.
        filters: for the template, by name.
        values: for the template; `plotlyjs` is added.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package, ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False}
    environment.filters.update(filters)
    plotlyjs = Markup(get_plotlyjs().replace("</script", "<\\/script"))
    return environment.get_template(template).render(plotlyjs=plotlyjs, **values)
