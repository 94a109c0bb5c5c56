"""Panels, variables and links as every dashboard has them."""

from collections.abc import Sequence
from typing import TypeAlias

from grafana_foundation_sdk.builders import bargauge, heatmap, stat, table, timeseries
from grafana_foundation_sdk.builders import common as options
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.builders.prometheus import Dataquery as Query
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common, prometheus
from grafana_foundation_sdk.models import dashboard as model

Panel: TypeAlias = Builder[model.Panel]
Variable: TypeAlias = Builder[model.VariableModel]

SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG = "l7proxy"
WIDTH = 24
KEEP = "${datasource:queryparam}&${mesh:queryparam}&${__url_time_range}"
"""What a link hands on to the next dashboard."""


def query(expression: str, legend: str = "", *, exemplars: bool = False) -> Query:
    """Returns a query over the time range; with `exemplars` its points link to traces."""
    made = Query().expr(expression).legend_format(legend or "__auto").range().editor_mode(_CODE)
    return made.exemplar(True) if exemplars else made


def latest(expression: str, ref: str = "A") -> Query:
    """Returns a query for now, as a table."""
    return Query().expr(expression).instant().format(prometheus.PromQueryFormat.TABLE).ref_id(ref).editor_mode(_CODE)


def lines(title: str, unit: str, *queries: Query, about: str = "", width: int = 8, link: str = "") -> Panel:
    """Returns a panel of curves; `link` is where a click on one leads."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(about)
        .unit(unit)
        .min(0)
        .fill_opacity(8)
        .show_points(common.VisibilityMode.NEVER)
        .tooltip(options.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING))
        .legend(
            options.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs([])
        )
        .datasource(SOURCE)
        .span(width)
        .height(8)
        .targets(_lettered(queries))
    )
    return panel.data_links([build.DashboardLink("Open").url(link)]) if link else panel


def number(
    title: str, unit: str, expression: str, *, about: str = "", width: int = 4, bad: float | None = None
) -> Panel:
    """Returns a panel with one number, red from `bad` on."""
    steps = [model.Threshold(color="green", value=None)]
    if bad is not None:
        steps.append(model.Threshold(color="red", value=bad))
    return (
        stat.Panel()
        .title(title)
        .description(about)
        .unit(unit)
        .graph_mode(common.BigValueGraphMode.AREA)
        .reduce_options(options.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
        .thresholds(build.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps))
        .datasource(SOURCE)
        .span(width)
        .height(4)
        .targets(_lettered([query(expression)]))
    )


def bars(title: str, unit: str, expression: str, legend: str, *, about: str, width: int = 8) -> Panel:
    """Returns a panel of horizontal bars between 0 and 1, red where little is left."""
    steps = [
        model.Threshold(color="red", value=None),
        model.Threshold(color="orange", value=0.25),
        model.Threshold(color="green", value=0.5),
    ]
    return (
        bargauge.Panel()
        .title(title)
        .description(about)
        .unit(unit)
        .min(0)
        .max(1)
        .orientation(common.VizOrientation.HORIZONTAL)
        .reduce_options(options.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
        .thresholds(build.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps))
        .datasource(SOURCE)
        .span(width)
        .height(8)
        .targets(_lettered([query(expression, legend)]))
    )


def heat(title: str, expression: str, *, about: str, exemplars: bool = False) -> Panel:
    """Returns a heatmap of a histogram's buckets in seconds."""
    target = query(expression, "{{le}}", exemplars=exemplars).format(prometheus.PromQueryFormat.HEATMAP)
    return (
        heatmap.Panel()
        .title(title)
        .description(about)
        .y_axis(heatmap.YAxisConfig().unit("s"))
        .datasource(SOURCE)
        .span(WIDTH // 2)
        .height(8)
        .targets(_lettered([target]))
    )


def rows_of(
    title: str,
    columns: Sequence[tuple[str, str, str]],
    labels: Sequence[tuple[str, str]],
    *,
    about: str = "",
    width: int = WIDTH,
    link: str = "",
) -> Panel:
    """Returns a table: `labels` are (label, heading), `columns` (heading, unit, expression), sorted by the first one.

    `link` is where a click on the first label leads.
    """
    refs = [chr(ord("A") + at) for at in range(len(columns))]
    # Grafana calls the value of a lone query "Value", those of several "Value #A" and so on.
    values = ["Value" if len(columns) == 1 else f"Value #{ref}" for ref in refs]
    names = {**dict(labels), **{value: column[0] for value, column in zip(values, columns, strict=True)}}
    arranged = {
        "excludeByName": {"Time": True},
        "indexByName": {name: at for at, name in enumerate(names)},
        "renameByName": names,
    }
    panel = (
        table.Panel()
        .title(title)
        .description(about)
        .align(common.FieldTextAlignment.AUTO)
        .cell_options(common.TableAutoCellOptions())
        .inspect(False)
        .sort_by([options.TableSortByFieldState().display_name(columns[0][0]).desc(True)])
        .datasource(SOURCE)
        .span(width)
        .height(8)
        .targets([latest(column[2], ref) for ref, column in zip(refs, columns, strict=True)])
        .with_transformation(model.DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(model.DataTransformerConfig(id_val="organize", options=arranged))
    )
    for heading, unit, _ in columns:
        panel = panel.override_by_name(heading, [model.DynamicConfigValue(id_val="unit", value=unit)])
    if link:
        opened = [{"title": "Open", "url": link}]
        panel = panel.override_by_name(labels[0][1], [model.DynamicConfigValue(id_val="links", value=opened)])
    return panel


def to_service(name: str) -> str:
    """Returns the address of the Service dashboard for the service that `name`, an expression of Grafana's, gives."""
    return f"/d/l7proxy-service/service?var-service=${{{name}}}&{KEEP}"


def variable(name: str, values: str, *, many: bool = True, everything: str = "") -> Variable:
    """Returns a variable that Prometheus fills; `everything` is the pattern of its "All" where that is not the list."""
    made = (
        build.QueryVariable(name)
        .query(values)
        .datasource(SOURCE)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(many)
        .include_all(many)
    )
    if many:
        made = made.current(model.VariableOption(selected=True, text="All", value="$__all"))
    return made.all_value(everything) if everything else made


def mesh_variable() -> Variable:
    """Returns the variable `mesh`; its "All" takes in sidecars whose configuration names none."""
    return variable("mesh", "label_values(target_info, l7proxy_mesh)", everything=".*")


def service_variables(*, many: bool) -> list[Variable]:
    """Returns the variables that narrow a dashboard down to services and to instances of them."""
    services = 'label_values(target_info{l7proxy_mesh=~"$mesh"}, service_name)'
    instances = 'label_values(target_info{l7proxy_mesh=~"$mesh", service_name=~"$service"}, instance)'
    return [mesh_variable(), variable("service", services, many=many), variable("instance", instances)]


def board(
    uid: str, title: str, about: str, variables: Sequence[Variable], rows: Sequence[tuple[str, Sequence[Panel]]]
) -> build.Dashboard:
    """Returns a dashboard of named rows, with links to the others."""
    made = (
        build.Dashboard(f"l7proxy / {title}")
        .uid(uid)
        .description(about)
        .tags([TAG])
        .readonly()
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .link(
            build.DashboardLink("l7proxy")
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(build.DatasourceVariable("datasource").type("prometheus"))
    )
    for item in variables:
        made = made.with_variable(item)
    for name, panels in rows:
        made = made.with_row(build.Row(name))
        for panel in panels:
            made = made.with_panel(panel)
    return made


_CODE = prometheus.QueryEditorMode.CODE


def _lettered(queries: Sequence[Query]) -> list[Builder[Dataquery]]:
    return [made.ref_id(chr(ord("A") + at)) for at, made in enumerate(queries)]
