"""What the panels of a W&B workspace show."""

from pl_losses.core.panels import literal


def patterns_of(built):
    """List the keys that a workspace's panels show, as regular expressions, one for each name in a panel."""
    found = []
    for section in built.sections:
        for panel in section.panels:
            if expression := getattr(panel, "metric_regex", None):
                found += expression.replace("$|^", "$\n^").split("\n")
            named = [*getattr(panel, "media_keys", []), *getattr(panel, "metrics", [])]
            named += [panel.table_name] if hasattr(panel, "table_name") else []
            named += [query["tableKey"] for query in getattr(panel, "query", {}).values()]
            found += [f"^{literal(str(key))}$" for key in named]
    return found
