from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from l7proxy.config.load import Loader, app_model, load
from l7proxy.config.model import AccessLog, Inbound, Tracing
from l7proxy.config.overrides import Overrides
from l7proxy.config.yaml import MAX_BYTES
from l7proxy.core.errors import ConfigError
from l7proxy.core.slices import finish
from l7proxy.filters.retry import GRPC

SIDECAR = """
apiVersion: l7proxy.io/v1
kind: Sidecar
metadata: {name: orders}
spec:
  inbound: {app: http://127.0.0.1:8080}
  outbound: {}
"""


def document(kind: str, name: str, spec: str) -> str:
    return f"---\napiVersion: l7proxy.io/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n"


def route(name: str, spec: str) -> str:
    return document("Route", name, spec)


def upstream(name: str, spec: str = "{endpoints: [10.0.0.1:80]}") -> str:
    return document("Upstream", name, spec)


def loaded(folder: Path, *parts: str, **overrides: Any):
    (folder / "a.yaml").write_text("".join(parts))
    return load([str(folder / "a.yaml")], Overrides(**overrides))


def mistakes(folder: Path, *parts: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(folder, *parts)
    return str(caught.value).replace(f"{folder}/", "")


def warnings(folder: Path, *parts: str) -> str:
    return "\n".join(map(str, loaded(folder, *parts).warnings)).replace(f"{folder}/", "")


def test_the_documents_of_a_folder_make_one_model_in_the_order_of_its_files(tmp_path):
    (tmp_path / "b.yaml").write_text(route("second", "{hosts: [b]}") + route("third", "{hosts: [c]}"))
    (tmp_path / "a.yml").write_text(SIDECAR + route("first", "{hosts: [a]}"))
    (tmp_path / "c.json").write_text('{"apiVersion": "l7proxy.io/v1", "kind": "Route", "metadata": {"name": "json"}}')
    (tmp_path / "notes.txt").write_text("not: [yaml")
    (tmp_path / ".hidden.yaml").write_text("not: [yaml")
    (tmp_path / "..data.yaml").mkdir()
    model = load([str(tmp_path)])
    assert [found.name for found in model.routes] == ["first", "second", "third", "json"]
    assert model.sidecar.spec.inbound == Inbound(app="http://127.0.0.1:8080")
    assert load([str(tmp_path), str(tmp_path / "a.yml")]) == model


def test_a_resource_knows_where_each_of_its_values_stands(tmp_path):
    model = loaded(tmp_path, SIDECAR, "---\n# about it\n", route("r", "\n  hosts:\n    - a\n    - b\n"))
    found = model.routes[0]
    assert found.where("spec.hosts[1]") == (str(tmp_path / "a.yaml"), 17)
    assert found.where("spec.hosts[7].nothing") == (str(tmp_path / "a.yaml"), 15)
    assert found.where("") == (str(tmp_path / "a.yaml"), 11)


def test_the_version_stands_for_the_content_alone(tmp_path):
    first = loaded(tmp_path, SIDECAR).version
    other = tmp_path / "other"
    other.mkdir()
    assert loaded(other, SIDECAR).version == first
    assert loaded(other, SIDECAR, "# more\n").version != first
    assert loaded(other, SIDECAR, app="http://127.0.0.1:1").version != first


def test_the_version_changes_with_a_variable_that_is_used(tmp_path, monkeypatch):
    text = SIDECAR.replace("orders", "'${NAME}'")
    monkeypatch.setenv("NAME", "a")
    first = loaded(tmp_path, text)
    monkeypatch.setenv("NAME", "b")
    second = loaded(tmp_path, text)
    assert (first.sidecar.name, second.sidecar.name) == ("a", "b")
    assert first.version != second.version


def test_every_mistake_of_every_file_is_told_in_order(tmp_path):
    (tmp_path / "b.yaml").write_text(route("r", "{hots: [a]}") + route("s", "{upstream: pay}") + "---\na: [\n")
    (tmp_path / "a.yaml").write_text(SIDECAR.replace("inbound", "inbond") + upstream("payments", "{endpoints: []}"))
    (tmp_path / "c.yaml").write_text(upstream("payments"))
    (tmp_path / "d.yaml").symlink_to("nowhere")
    with pytest.raises(ConfigError) as caught:
        load([str(tmp_path)])
    assert str(caught.value).replace(f"{tmp_path}/", "") == (
        "a.yaml:6: spec.inbond: unknown key; did you mean 'inbound'?\n"
        "a.yaml:12: spec.endpoints: is empty\n"
        "b.yaml:5: spec.hots: unknown key; did you mean 'hosts'?\n"
        "b.yaml:12: not valid YAML: did not find expected node content (while parsing a flow node)\n"
        "d.yaml: cannot be read: No such file or directory"
    )


def test_mistakes_of_every_kind_are_told_in_one_pass(tmp_path):
    policy = "apiVersion: security.istio.io/v1\nkind: {}\nmetadata: {{name: p}}\nspec: {}\n"
    text = mistakes(
        tmp_path,
        SIDECAR.replace("{app:", "{trustedProxies: [10.0.0/8], tls: {key: no.key}, app:"),
        "---\n"
        + policy.format("AuthorizationPolicy", "{action: CUSTOM, rules: [{to: [{operation: {paths: [a*b]}}]}]}"),
        "---\n" + policy.format("PeerAuthentication", "{portLevelMtls: {http: {mode: STRICT}}}"),
        "---\n" + policy.format("Route", "{host: a}"),
        route("r", "{upstream: pay, hosts: [a], hots: [b], policies: {retry: {on: [connect-failur]}}}"),
        route("s", "{path: {forward: original}, policies: {authorization: {deny: [{paths: [/a]}]}}}"),
        route("t", "{upstream: pay}"),
    )
    assert text.splitlines() == [
        "a.yaml:6: spec.inbound.trustedProxies[0]: '10.0.0/8' is not an address or a block like 10.0.0.0/8",
        "a.yaml:6: spec.inbound.tls.key: no.key cannot be read: No such file or directory",
        "a.yaml:6: spec.inbound.tls: mode STRICT needs cert and key, or spiffe or dev",
        "a.yaml:12: 'a*b': a * can only stand at the start or at the end",
        "a.yaml:12: action CUSTOM asks an external authorizer, which is not supported: nothing would be enforced",
        "a.yaml:17: spec.portLevelMtls.http: 'http' is not a port",
        "a.yaml:19: apiVersion: must be l7proxy.io/v1 for kind Route, not 'security.istio.io/v1'",
        "a.yaml:22: spec.host: unknown key; did you mean 'hosts'?",
        "a.yaml:27: spec.hots: unknown key; did you mean 'hosts'?",
        "a.yaml:27: spec.policies.retry.on[0]: must be one of connect-failure, reset, timeout, refused-stream, "
        + ", ".join(("503", "5xx", *GRPC))
        + ", not 'connect-failur'; did you mean 'connect-failure'?",
        "a.yaml:32: spec.path.forward: original cannot be forwarded where rules depend on the path",
        "a.yaml:37: spec.upstream: unknown upstream 'pay'",
    ]


def test_the_original_path_is_not_forwarded_past_rules_of_istio_either(tmp_path):
    policy = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec: "
    text = mistakes(
        tmp_path,
        SIDECAR,
        route("r", "{path: {forward: original}}"),
        policy + "{action: DENY, rules: [{to: [{operation: {notPaths: [/open]}}]}]}",
    )
    assert text == (
        "a.yaml:12: spec.path.forward: original cannot be forwarded where rules depend on the path, as at a.yaml:17"
    )


def test_a_reference_to_a_document_with_a_mistake_is_no_second_mistake(tmp_path):
    text = mistakes(
        tmp_path,
        SIDECAR,
        upstream("pay", "{}"),
        route("r", "{upstream: pay}"),
        route("s", "{hosts: [s], upstream: pax}"),
    )
    assert text == (
        "a.yaml:12: spec: one of 'endpoints' and 'dns' is needed\n"
        "a.yaml:22: spec.upstream: unknown upstream 'pax'; did you mean 'pay'?"
    )


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((), "a.yaml:1: there is no document in this file"),
        (("# nothing\n",), "a.yaml:1: there is no document in this file"),
        ((route("r", "{}"),), "a.yaml:1: there is no document of kind Sidecar"),
        ((SIDECAR, "---", SIDECAR), "a.yaml:11: metadata.name: Sidecar 'orders' is defined in a.yaml:2"),
        (
            (SIDECAR, "---", SIDECAR.replace("orders", "other")),
            "a.yaml:10: kind: there can be one Sidecar, and a.yaml:2 defines it",
        ),
        (
            (SIDECAR, route("r", "{}"), route("r", "{hosts: [a]}")),
            "a.yaml:16: metadata.name: Route 'r' is defined in a.yaml:9",
        ),
        ((SIDECAR, "---\na: 1\n"), "a.yaml:9: key 'apiVersion' is missing\na.yaml:9: key 'kind' is missing"),
        ((SIDECAR, "---\n- a\n"), "a.yaml:9: a document must be a mapping with apiVersion, kind, metadata and spec"),
        (
            (SIDECAR, "---\nkind: Route\napiVersion: v1\n"),
            "a.yaml:10: apiVersion: must be l7proxy.io/v1 for kind Route",
        ),
        ((SIDECAR, document("Rote", "r", "{}")), "a.yaml:10: kind: unknown kind 'Rote'; did you mean 'Route'?"),
        ((SIDECAR, "---\napiVersion: l7proxy.io/v1\nkind: Route\n"), "a.yaml:9: key 'metadata' is missing"),
        ((SIDECAR, route("a b", "{}")), "a.yaml:11: metadata.name: 'a b' is not a name: letters, digits and ._-"),
        ((SIDECAR, route("r", "{}"), "status: {}"), "a.yaml:13: status: unknown key"),
        ((SIDECAR, route("r", "{upstream: pay}"), upstream("pays")), "unknown upstream 'pay'; did you mean 'pays'?"),
        (
            (SIDECAR.replace("app: http://127.0.0.1:8080", ""), route("r", "{upstream: app}")),
            "a.yaml:12: spec.upstream: there is no application: inbound.app is not set",
        ),
        (
            (SIDECAR.replace("app: http://127.0.0.1:8080", ""), route("r", "{hosts: [a]}")),
            "a.yaml:12: spec: the route names no target, and inbound.app is not set",
        ),
        ((SIDECAR, route("r", "{direction: outbound}")), "an outbound route needs upstream, split, redirect or"),
        ((SIDECAR, route("r", "{split: [{upstream: app, weight: 0}]}")), "a.yaml:12: spec.split: all weights are 0"),
        (
            (SIDECAR, route("r", "{rewrite: {prefix: /a}, matches: [{}, {path: {exact: /b}}]}")),
            "a.yaml:12: spec.rewrite.prefix: matches[1] has no path prefix to replace",
        ),
        (
            (SIDECAR, route("r", "{redirect: {prefix: /a}, matches: [{path: {exact: /b}}]}")),
            "a.yaml:12: spec.redirect.prefix: matches[0] has no path prefix to replace",
        ),
        ((SIDECAR, route("r", "{redirect: {host: a}, rewrite: {path: /}}")), "there is no upstream to rewrite for"),
        (
            (SIDECAR, route("r", "{matches: [{path: {prefix: /a/../b}}]}")),
            "spec.matches[0].path: no request has such a path: '/a/../b' is '/b' once it is normalised",
        ),
        ((SIDECAR, route("r", "{matches: [{path: {exact: /a//b}}]}")), "'/a//b' is '/a/b' once it is normalised"),
        ((SIDECAR, route("r", "{matches: [{path: {exact: '/a%zz'}}]}")), "no request has such a path"),
        (
            (SIDECAR.replace("outbound: {}", "admin: {listen: 0.0.0.0:15006}"),),
            "a.yaml:7: spec.admin.listen: inbound listens on 0.0.0.0:15006 too",
        ),
        (
            (SIDECAR.replace("outbound: {}", "admin: {listen: 127.0.0.1:15006}"),),
            "a.yaml:7: spec.admin.listen: inbound listens on 0.0.0.0:15006 and so on 127.0.0.1:15006 too",
        ),
        (
            (SIDECAR.replace("outbound: {}", 'admin: {listen: "[::]:15006"}'),),
            "a.yaml:7: spec.admin.listen: inbound listens on 0.0.0.0:15006 and so on [::]:15006 too",
        ),
        (
            (SIDECAR, route("r", "{policies: {headers: {request: {remove: [CDN-Loop]}}}}")),
            "'cdn-loop' cannot be edited",
        ),
        (
            (SIDECAR.replace("8080", "15006"),),
            "a.yaml:6: spec.inbound.app: http://127.0.0.1:15006 is the sidecar's own inbound listener (0.0.0.0:15006): "
            "requests would come back to it",
        ),
        (
            (SIDECAR.replace("http://127.0.0.1:8080", "http://localhost:15001"),),
            "a.yaml:6: spec.inbound.app: http://localhost:15001 is the sidecar's own outbound listener",
        ),
        (
            (SIDECAR.replace("app: http://127.0.0.1:8080", 'app: "https://[::1]", listen: "[::]:443"'),),
            "a.yaml:6: spec.inbound.app: https://[::1] is the sidecar's own inbound listener ([::]:443)",
        ),
        (
            (SIDECAR, upstream("app", "{endpoints: [{address: 127.0.0.1:15006}]}")),
            "a.yaml:12: spec.endpoints[0]: 127.0.0.1:15006 is the sidecar's own inbound listener",
        ),
        (
            (SIDECAR, upstream("u", "{endpoints: [10.0.0.1:1, '[::ffff:127.0.0.1]:15001']}")),
            "a.yaml:12: spec.endpoints[1]: [::ffff:127.0.0.1]:15001 is the sidecar's own outbound listener",
        ),
        (
            (SIDECAR, upstream("u", "{dns: localhost:15001}")),
            "a.yaml:12: spec.dns: localhost:15001 is the sidecar's own outbound listener",
        ),
        (
            (SIDECAR, upstream("u"), upstream("u").replace("name: u", "name: u, namespace: b")),
            "metadata.name: Upstream 'u' is defined in a.yaml:9",
        ),
        *(
            ((SIDECAR.replace("{app:", f"{{trustedProxies: [{quoted}], app:"),), f"a.yaml:6: spec.inbound.{message}")
            for quoted, message in (
                ("10.0.0/8", "trustedProxies[0]: '10.0.0/8' is not an address or a block"),
                ("'10.0.0.1', 10.0.0.300", "trustedProxies[1]: '10.0.0.300' is not an address or a block"),
                ("'fd00::/200'", "trustedProxies[0]: 'fd00::/200' is not an address or a block"),
                ("''", "trustedProxies[0]: '' is not a host name, nor a SPIFFE ID like"),
                ("'spiffe://Demo/web'", "trustedProxies[0]: 'Demo' is not a trust domain"),
            )
        ),
        *(
            ((SIDECAR, upstream("u", f"{{{target}}}")), f"a.yaml:12: spec.{message}")
            for target, message in (
                ("endpoints: ['300.0.0.1:80']", "endpoints[0]: '300.0.0.1' is not an IPv4 address"),
                ("endpoints: ['10.0.0.010:80']", "endpoints[0]: '10.0.0.010' is not an IPv4 address"),
                ("dns: '10.0.0:80'", "dns: '10.0.0' is not an IPv4 address"),
            )
        ),
        (
            (SIDECAR.replace("127.0.0.1:8080", "127.0.0.1:8080/v1"),),
            "a.yaml:6: spec.inbound.app: 'http://127.0.0.1:8080/v1': only scheme, host and port can be used here",
        ),
        (
            (SIDECAR.replace("{app:", "{tls: {dev: demo, trustDomains: [a, 'spiffe://b']}, app:"),),
            "a.yaml:6: spec.inbound.tls.trustDomains[1]: 'spiffe://b' is not a trust domain",
        ),
        (
            (SIDECAR, upstream("u", "{endpoints: ['a:1'], tls: {dev: demo, identity: 'spiffe://demo'}}")),
            "a.yaml:12: spec.tls.identity: spiffe://demo names a trust domain, not a workload",
        ),
        (
            (SIDECAR, upstream("u", "{endpoints: ['a:1'], tls: {dev: demo, identity: '10.0.0.300'}}")),
            "a.yaml:12: spec.tls.identity: '10.0.0.300' does not appear to be an IPv4 or IPv6 address",
        ),
        (
            (SIDECAR, route("r", "{matches: [{path: {regex: '/caf(é|e)'}}]}")),
            "a.yaml:12: spec.matches[0].path.regex: '/caf(é|e)' matches no path: clients send 'é' as %C3%A9, "
            "which is what is matched",
        ),
        (
            (SIDECAR.replace("{app:", "{tls: {spiffe: /run/x.sock}, app:"),),
            "a.yaml:6: spec.inbound.tls.spiffe: '/run/x.sock' is not a socket by its absolute path, "
            "like unix:/run/spire/agent.sock",
        ),
        (
            (SIDECAR.replace("{app:", "{tls: {dev: Demo}, app:"),),
            "a.yaml:6: spec.inbound.tls.dev: 'Demo' is not a trust domain, like demo: lower case, digits and ._-",
        ),
        (
            (SIDECAR.replace("{app:", "{tls: {cert: no.crt, key: no.key}, app:"),),
            "a.yaml:6: spec.inbound.tls.cert: no.crt cannot be read: No such file or directory\n"
            "a.yaml:6: spec.inbound.tls.key: no.key cannot be read: No such file or directory",
        ),
    ],
)
def test_documents_that_do_not_fit_together_are_told(tmp_path, parts, message):
    assert message in mistakes(tmp_path, *parts)


def test_an_upstream_called_app_stands_for_the_application(tmp_path):
    sidecar = SIDECAR.replace("app: http://127.0.0.1:8080", "")
    model = loaded(tmp_path, sidecar, upstream("app"), route("r", "{hosts: [a]}"), route("s", "{upstream: app}"))
    assert model.upstreams["app"].spec.endpoints == ("10.0.0.1:80",)


def test_the_application_of_the_command_line_wins(tmp_path):
    model = loaded(tmp_path, SIDECAR, app="http://127.0.0.1:9")
    assert model.sidecar.spec.inbound == Inbound(app="http://127.0.0.1:9")
    alone = loaded(tmp_path, route("r", "{hosts: [a]}"), app="http://127.0.0.1:9").sidecar
    assert alone == app_model(Overrides(app="http://127.0.0.1:9")).sidecar


@pytest.mark.parametrize("files", [(), (SIDECAR,)])
def test_an_application_of_the_command_line_is_no_own_listener(tmp_path, files):
    message = "--app: http://127.0.0.1:15006 is the sidecar's own inbound listener (0.0.0.0:15006): "
    given = Overrides(app="http://127.0.0.1:15006")
    with pytest.raises(ConfigError) as caught:
        if files:
            loaded(tmp_path, *files, app=given.app)
        else:
            app_model(given)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("address", ["127.0.0.1:15002", "127.0.0.2:15001", "10.0.0.1:15006", "orders.shop.svc:15006"])
def test_an_upstream_beside_the_own_listeners_is_no_mistake(address, tmp_path):
    assert loaded(tmp_path, SIDECAR, upstream("u", f"{{endpoints: ['{address}']}}")).upstreams.keys() == {"u"}


def test_what_is_overridden_stands_beside_what_the_yaml_says(tmp_path):
    text = SIDECAR + "  service: {name: a, mesh: m}\n  tracing: {sampling: 0.5, otlp: 'http://a:1'}\n"
    spec = loaded(tmp_path, text, service="b", namespace="shop", otlp="http://b:2", workers=3).sidecar.spec
    assert (spec.service.name, spec.service.namespace, spec.service.mesh) == ("b", "shop", "m")
    assert (spec.tracing, spec.workers) == (Tracing(sampling=0.5, otlp="http://b:2"), 3)
    assert loaded(tmp_path, SIDECAR, otlp="http://b:2").sidecar.spec.tracing == Tracing(otlp="http://b:2")


def test_without_a_file_every_request_is_logged():
    assert app_model(Overrides(app="http://127.0.0.1:9")).sidecar.spec.access_log == AccessLog(path="/dev/stdout")


def test_a_route_for_a_listener_that_is_not_there_is_a_warning(tmp_path):
    sidecar = SIDECAR.replace("outbound: {}", "")
    assert warnings(tmp_path, sidecar, upstream("u"), route("r", "{direction: outbound, upstream: u}")) == (
        "a.yaml:17: spec.direction: the Sidecar has no outbound listener for this route"
    )


def test_a_route_that_is_to_be_traced_without_a_collector_is_a_warning(tmp_path):
    traced = route("r", "{upstream: app, tracing: {sampling: 1}}")
    sidecar = SIDECAR + "  tracing: {otlp: 'grpc://a:4317'}\n"
    assert warnings(tmp_path, sidecar, traced) == ""
    assert "spec.tracing: the Sidecar has no tracing.otlp: nothing is traced" in warnings(tmp_path, SIDECAR, traced)


def test_paths_that_hold_no_configuration_are_told(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "large.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    for name, message in (
        ("nothing", "cannot be read: No such file or directory"),
        ("empty", "there is no YAML file in this folder"),
        ("large.yaml", "is larger than 16 MiB"),
    ):
        with pytest.raises(ConfigError) as caught:
            load([str(tmp_path / name)])
        assert str(caught.value) == f"{tmp_path / name}: {message}"
    (tmp_path / "empty" / "orders").mkdir()
    with pytest.raises(ConfigError, match="; folders within it are not read"):
        load([str(tmp_path / "empty")])
    with pytest.raises(ConfigError, match="/dev/zero: cannot be read: not a regular file"):
        load(["/dev/zero"])


def test_documents_that_did_not_change_stay_the_same_objects(tmp_path):
    file = tmp_path / "a.yaml"
    loader = Loader()
    file.write_text(SIDECAR + route("first", "{hosts: [a]}") + route("second", "{hosts: [b]}"))
    before = finish(loader.steps([str(file)]))
    file.write_text(
        SIDECAR + route("new", "{hosts: [c]}") + route("first", "{hosts: [d]}") + route("second", "{hosts: [b]}")
    )
    after = finish(loader.steps([str(file)]))
    assert after.sidecar is before.sidecar
    assert after.routes[1].spec is not before.routes[0].spec
    assert after.routes[2].spec is before.routes[1].spec
    assert (before.routes[1].line, after.routes[2].line) == (14, 19)


def test_a_hundred_upstreams_with_one_missing_are_told_apart(tmp_path):
    parts = [upstream(f"u{number}") for number in range(100)]
    routes = [route(f"r{number}", f"{{hosts: [h{number}], upstream: u{number}}}") for number in range(101)]
    assert mistakes(tmp_path, SIDECAR, *parts, *routes).count("\n") == 0


PIECES = st.sampled_from(
    [
        "{",
        "}",
        "[",
        "]",
        "- ",
        ": ",
        "'",
        "*x",
        "&x ",
        "~",
        "0",
        "-1",
        "\n",
        "\n---\n",
        "  ",
        "${X}",
        "!t ",
        "\u00e9",
        "*",
    ]
)
WHOLE = (
    SIDECAR
    + upstream("u", "{dns: 'a.svc:80', breakers: {requests: 5}, tls: {ca: ca.pem}}")
    + route(
        "r",
        "{hosts: ['*.b.org'], matches: [{path: {regex: '/a.*'}, headers: {x: y}}], upstream: u, policies: {retry: {}}}",
    )
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, len(WHOLE)), st.integers(0, 8), PIECES), min_size=1, max_size=4))
def test_whatever_is_written_is_loaded_or_told_with_its_file(tmp_path, edits):
    text = WHOLE
    for place, gone, piece in edits:
        text = text[:place] + piece + text[place + gone :]
    try:
        loaded(tmp_path, text)
    except ConfigError as error:
        assert all(problem.file == str(tmp_path / "a.yaml") for problem in error.problems)
