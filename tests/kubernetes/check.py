#!/usr/bin/env python3
"""Checks config/kubernetes: each object against the schemas of Kubernetes, and that what they name is there.

Needs the package kubernetes-validate; `make manifests` gets it.
"""

import pathlib
import re
import sys

import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
BASE = ROOT / "config/kubernetes"
# The oldest that buildkit.yaml names, and the newest that there are schemas for.
VERSIONS = ["1.33.0", kubernetes_validate.latest_version()]
# What pods tell their containers, and what is no setting of this version's table.
NO_SETTINGS = {"POD_INDEX"}
# Made by an overlay.
SECRETS = {"image-builder", "buildkit-server", "buildkit-client"}

problems = []


def problem(where, what):
    problems.append(f"{where}: {what}")


def containers(pod):
    return pod.get("initContainers", []) + pod["containers"]


def main():
    kustomization = yaml.safe_load((BASE / "kustomization.yaml").read_text())
    files = {path.name for path in BASE.glob("*.yaml")} - {"kustomization.yaml"}
    if set(kustomization["resources"]) != files:
        problem("kustomization.yaml", f"has {kustomization['resources']}, and there are {sorted(files)}")
    objects = [
        (name, it) for name in sorted(files) for it in yaml.safe_load_all((BASE / name).read_text()) if it
    ]
    names = [(it["kind"], it["metadata"]["name"]) for _, it in objects]
    for twice in {name for name in names if names.count(name) > 1}:
        problem("all", f"{twice} is there twice")
    config_maps = {it["name"]: it for it in kustomization["configMapGenerator"]}
    known = set(re.findall(r"^#? ?([A-Z][A-Z0-9_]+)=", (ROOT / "config/.env.example").read_text(), re.M))
    if "HTTP_ADDR" not in known:
        problem(".env.example", "cannot be read")
    for it in config_maps.values():
        for literal in it.get("literals", []):
            if literal.split("=")[0] not in known | NO_SETTINGS:
                problem("kustomization.yaml", f"no such setting: {literal}")
        for file in it.get("files", []):
            if not (BASE / file).is_file():
                problem("kustomization.yaml", f"no such file: {file}")
    labels = {}
    for file, it in objects:
        where = f"{file}: {it['kind']} {it['metadata']['name']}"
        if it["kind"] == "StatefulSet":
            check_pods(where, it, config_maps, known, names)
            labels[it["metadata"]["name"]] = it["spec"]["template"]
    for file, it in objects:
        where = f"{file}: {it['kind']} {it['metadata']['name']}"
        if it["apiVersion"].startswith("keda.sh/"):
            check_scaling(where, it, names)
            continue
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(it, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                problem(where, f"{version}: {error.message} at {list(error.path)}")
        check_selector(where, it, labels)
    if len(objects) < 10:
        problem("all", f"only {len(objects)} objects were found")
    for line in problems:
        print(line, file=sys.stderr)
    print(f"{len(objects)} objects, Kubernetes {' and '.join(VERSIONS)}: {len(problems)} problems")
    return 1 if problems else 0


def check_pods(where, it, config_maps, known, names):
    spec = it["spec"]
    pod = spec["template"]["spec"]
    if ("Service", spec["serviceName"]) not in names:
        problem(where, f"no such service: {spec['serviceName']}")
    volumes = {volume["name"] for volume in pod.get("volumes", []) + [
        {"name": claim["metadata"]["name"]} for claim in spec.get("volumeClaimTemplates", [])
    ]}
    for volume in pod.get("volumes", []):
        secret = volume.get("secret", {}).get("secretName")
        if secret and secret not in SECRETS:
            problem(where, f"no such secret: {secret}")
        config_map = volume.get("configMap", {}).get("name")
        if config_map and config_map not in config_maps:
            problem(where, f"no such config map: {config_map}")
    for container in containers(pod):
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        if mounted != volumes:
            problem(where, f"mounts {sorted(mounted)}, and has {sorted(volumes)}")
        for variable in container.get("env", []):
            if variable["name"] not in known | NO_SETTINGS:
                problem(where, f"no such setting: {variable['name']}")
        for source in container.get("envFrom", []):
            if source.get("configMapRef", {}).get("name", "image-builder") not in config_maps:
                problem(where, f"no such config map: {source}")
        ports = {port["name"] for port in container["ports"]}
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"]:
            how = container.get(probe)
            if not how:
                problem(where, f"has no {probe}")
                continue
            asked = how.get("httpGet") or how.get("tcpSocket")
            if asked and asked["port"] not in ports:
                problem(where, f"{probe} asks {asked['port']}")
        if not container["securityContext"].get("readOnlyRootFilesystem"):
            problem(where, "its root can be written")
        # What is privileged is so in a user namespace of its own.
        if container["securityContext"].get("privileged") and pod.get("hostUsers") is not False:
            problem(where, "is privileged on its node")


def check_selector(where, it, pods):
    selector = it.get("spec", {}).get("selector") or it.get("spec", {}).get("podSelector")
    if it["kind"] == "StatefulSet" or not selector:
        return
    wanted = selector.get("matchLabels", selector)
    found = [pod for pod in pods.values() if wanted.items() <= pod["metadata"]["labels"].items()]
    if len(found) != 1:
        problem(where, f"means {len(found)} kinds of pods")
        return
    ports = {port["name"] for container in found[0]["spec"]["containers"] for port in container["ports"]}
    for port in it["spec"].get("ports", []):
        if port["targetPort"] not in ports:
            problem(where, f"no such port: {port['targetPort']}")


def check_scaling(where, it, names):
    target = it["spec"]["scaleTargetRef"]
    if (target["kind"], target["name"]) not in names:
        problem(where, f"no such target: {target}")
    metrics = (ROOT / "docs/operations.md").read_text()
    for trigger in it["spec"]["triggers"]:
        for metric in re.findall(r"image_builder_(\w+)", trigger["metadata"]["query"]) or ["none"]:
            if f"`{metric}`" not in metrics:
                problem(where, f"no such metric: {metric}")


if __name__ == "__main__":
    sys.exit(main())
