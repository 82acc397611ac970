"""The manifests in deploy/kubernetes ask for what modeld has, give it what it needs, and wait for as long as it takes."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from modeld.config import Config, load_config
from modeld.daemon import rules_of
from modeld.httpapi.head import parse_head
from modeld.httpapi.router import match
from modeld.manager.manager import CLOSE_TIMEOUT_S

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "deploy" / "kubernetes"
CONTAINERFILE = ROOT / "deploy" / "Containerfile"
PROBE_S = 2.0  # what the endpoints and the proxies of all nodes take beside the probe, at least


def manifests() -> Iterator[dict[str, Any]]:
    for path in sorted(FOLDER.glob("*.yaml")):
        if path.name not in ("kustomization.yaml", "models.yaml"):
            yield from yaml.safe_load_all(path.read_text())


def kinds(kind: str) -> list[dict[str, Any]]:
    return [manifest for manifest in manifests() if manifest["kind"] == kind]


@pytest.fixture
def pod() -> Any:
    [stateful] = kinds("StatefulSet")
    return stateful["spec"]["template"]["spec"]


@pytest.fixture
def container(pod: Any) -> Any:
    [container] = pod["containers"]
    return container


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """What a pod makes of the ConfigMap, with keys where a pod has them."""
    keys = tmp_path / "keys"
    keys.write_text("somebody admin 0123456789abcdef0123\n")
    keys.chmod(0o440)
    path = tmp_path / "models.yaml"
    text = (FOLDER / "models.yaml").read_text()
    assert text.count("/etc/modeld-keys/keys") == 1
    path.write_text(text.replace("/etc/modeld-keys/keys", str(keys)))
    return load_config(path)


def test_kustomize_is_told_of_every_file() -> None:
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    files = {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml", "models.yaml", "servicemonitor.yaml"}
    assert set(kustomization["resources"]) == files
    [generator] = kustomization["configMapGenerator"]
    assert generator == {"name": "modeld", "files": ["models.yaml"]}
    assert kustomization["generatorOptions"]["disableNameSuffixHash"] is True  # else a change starts every pod anew


@pytest.mark.soak
def test_kustomize_builds_them() -> None:
    """Debian's kubectl is too old for it, so this is no part of `make test`."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not here; version 1.27 or newer")
    done = subprocess.run([kubectl, "kustomize", str(FOLDER)], capture_output=True, text=True, timeout=60, check=True)
    built = list(yaml.safe_load_all(done.stdout))
    assert {manifest["kind"] for manifest in built} == {
        "ConfigMap", "Namespace", "NetworkPolicy", "PersistentVolumeClaim", "PodDisruptionBudget", "Service", "StatefulSet",
    }  # fmt: skip
    assert {manifest["metadata"].get("namespace") for manifest in built if manifest["kind"] != "Namespace"} == {"modeld"}
    assert all(manifest["metadata"]["labels"]["app.kubernetes.io/name"] == "modeld" for manifest in built)


def test_the_config_map_is_a_configuration(config: Config, pod: Any) -> None:
    assert config.server.host == ("0.0.0.0",)
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {str(spec.path.parent) for spec in config.models} == {"/models"}
    assert volumes["config"]["configMap"]["name"] == "modeld"
    assert volumes["keys"]["secret"]["defaultMode"] == 0o440  # modeld refuses a key file that everybody may read


def test_mounts_are_whole_volumes_where_the_configuration_and_the_image_look(container: Any, pod: Any) -> None:
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    image = CONTAINERFILE.read_text()
    assert set(mounts) == {"/etc/modeld", "/etc/modeld-keys", "/models", "/var/lib/modeld"}
    assert "MODELD_CONFIG=/etc/modeld/models.yaml" in image
    assert "STATE_DIRECTORY=/var/lib/modeld" in image
    assert not any("subPath" in mount for mount in mounts.values())  # a subPath never sees a change
    assert {path for path, mount in mounts.items() if mount.get("readOnly")} == set(mounts) - {"/var/lib/modeld"}
    assert {mount["name"] for mount in mounts.values()} == {volume["name"] for volume in pod["volumes"]}


def test_probes_ask_what_there_is(container: Any, config: Config) -> None:
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    asked = {}
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        probe = container[name]["httpGet"]
        assert ports[probe["port"]] == config.server.port
        match("GET", probe["path"])  # raises where there is no such route
        asked[name] = probe["path"]
    # Never /readyz to find out whether it lives: a model that loads would be killed over and over.
    assert asked == {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}


def test_kubernetes_has_looked_away_before_anything_is_refused(container: Any, config: Config) -> None:
    probe = container["readinessProbe"]
    seen_s = probe["periodSeconds"] * probe["failureThreshold"] + PROBE_S
    assert config.switching.ready_delay_s > seen_s
    assert config.server.stop_delay_s > seen_s
    assert config.switching.on_inflight == "drain"


def test_a_stop_has_the_time_that_it_may_take(pod: Any, config: Config) -> None:
    server = config.server
    takes_s = server.stop_delay_s + server.stop_timeout_s + CLOSE_TIMEOUT_S + server.send_timeout_s + server.linger_s
    assert pod["terminationGracePeriodSeconds"] > takes_s
    assert "lifecycle" not in pod["containers"][0]  # a preStop would take of that time


def test_the_variables_of_services_do_not_meet_those_of_modeld(pod: Any) -> None:
    """Of a service `modeld` Kubernetes makes MODELD_PORT=tcp://10.0.0.1:8080."""
    assert "modeld" in {service["metadata"]["name"] for service in kinds("Service")}
    assert pod["enableServiceLinks"] is False


def test_the_pod_keeps_to_the_restricted_profile(pod: Any, container: Any) -> None:
    [namespace] = kinds("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert pod["automountServiceAccountToken"] is False
    uid, gid = pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]
    assert f"USER {uid}:{gid}\n" in CONTAINERFILE.read_text()
    assert pod["securityContext"]["fsGroup"] == gid  # by which it may read the keys


def test_limits_are_what_is_requested(container: Any) -> None:
    """Whole cores: modeld takes as many threads as the quota has, and a quota of 3.5 would stop them in the middle of a step."""
    resources = container["resources"]
    assert resources["requests"] == resources["limits"]
    assert resources["limits"]["cpu"].isdecimal()


def test_services_budgets_and_policies_mean_these_pods(container: Any) -> None:
    [stateful] = kinds("StatefulSet")
    labels = stateful["spec"]["template"]["metadata"]["labels"]
    port = container["ports"][0]["name"]
    services = {service["metadata"]["name"]: service for service in kinds("Service")}
    assert all(service["spec"]["selector"] == labels for service in services.values())
    assert all(each["targetPort"] == port for service in services.values() for each in service["spec"]["ports"])
    assert stateful["spec"]["selector"]["matchLabels"] == labels
    headless = services[stateful["spec"]["serviceName"]]["spec"]
    assert (headless["clusterIP"], headless["publishNotReadyAddresses"]) == ("None", True)
    [budget] = kinds("PodDisruptionBudget")
    assert budget["spec"] == {"maxUnavailable": 1, "selector": {"matchLabels": labels}}
    [policy] = kinds("NetworkPolicy")
    assert (policy["spec"]["podSelector"]["matchLabels"], policy["spec"]["egress"]) == (labels, [])
    [monitor] = kinds("ServiceMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    assert wanted <= {**labels, **services["modeld-pods"]["metadata"]["labels"]}.items()
    [endpoint] = monitor["spec"]["endpoints"]
    match("GET", endpoint["path"])


@pytest.mark.parametrize(
    "host", ["10.1.2.3:8080", "modeld:8080", "modeld.modeld.svc:8080", "modeld-0.modeld-pods.modeld.svc.cluster.local:8080"]
)
def test_probes_and_other_pods_are_let_in_by_their_names(config: Config, host: str) -> None:
    head = parse_head(f"GET /readyz HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert rules_of(config).browser.admit(head, on_unix=False) is None  # raises HostNotAllowed for a name that is none of ours
