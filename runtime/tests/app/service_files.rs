//! Systemd units and Kubernetes manifests as `ombra-run service-files` writes them.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use ombra_runtime::config::ServiceConfig;
use serde::Deserialize;
use serde_json::Value;

use super::plans::Folder;
use super::processes::ombra_run;

/// The settings, and the party beside the server in each.
const SETTINGS: [(&str, Option<&str>); 3] = [("3pc", Some("helper")), ("2pc-dealer", Some("dealer")), ("2pc", None)];
/// Where a server keeps a dealer's material.
const STATE: &str = "/var/lib/ombra-server";

/// The folder with what the command writes.
fn written(setting: &str) -> Folder {
    let folder = Folder::new();
    let output = ombra_run().args(["service-files", "--setting", setting, "-o"]).arg(&folder.0).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let files = if setting == "2pc" { 2 } else { 4 };
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), files);
    let again = ombra_run().args(["service-files", "-o"]).arg(&folder.0).output().unwrap();
    assert_eq!(again.status.code(), Some(2), "what is there is not replaced");
    assert!(String::from_utf8_lossy(&again.stderr).contains("E1033"));
    folder
}

/// That a command line is one that the program understands, though there is no such configuration here.
///
/// A server that may get material of a dealer, and no other party, has a place to write.
fn check_command(arguments: &[&str], party: &str, setting: &str) {
    assert_eq!((arguments[0], arguments[2], arguments[3]), ("serve", "--party", party));
    let after = |option: &str| arguments.iter().skip_while(|argument| **argument != option).nth(1).copied();
    let spent = format!("{STATE}/spent-sessions");
    let expected = (setting == "2pc-dealer" && party == "server").then_some((STATE, spent.as_str()));
    assert_eq!(after("--material").zip(after("--spent")), expected);
    let output = ombra_run().args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(errors.contains("error[E0711]: the configuration cannot be read"), "{arguments:?}: {errors}");
}

fn drain() -> u64 {
    ServiceConfig::default().drain.as_secs()
}

#[test]
fn units_are_hardened_and_start_the_program() {
    SETTINGS.into_iter().for_each(|(setting, third)| check_units(setting, third));
}

fn check_units(setting: &str, third: Option<&str>) {
    let folder = written(setting);
    for party in ["server"].into_iter().chain(third) {
        let path = folder.join(&format!("systemd/ombra-{party}.service"));
        let text = fs::read_to_string(&path).unwrap();
        let mut section = "";
        let mut entries: Vec<(&str, &str, &str)> = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            match line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                Some(name) => section = name,
                None => {
                    let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("{line}"));
                    entries.push((section, key, value));
                }
            }
        }
        let get =
            |key: &str| entries.iter().find(|(_, name, _)| *name == key).map(|(section, _, value)| (*section, *value));
        let sections: BTreeSet<&str> = entries.iter().map(|(section, _, _)| *section).collect();
        assert_eq!(sections, BTreeSet::from(["Install", "Service", "Unit"]));
        let (_, command) = get("ExecStart").unwrap();
        let arguments: Vec<&str> = command.split(' ').skip(1).collect();
        check_command(&arguments, party, setting);
        let keeps = arguments.contains(&"--material");
        assert_eq!(get("StateDirectory"), keeps.then_some(("Service", "ombra-server")));
        assert_eq!(get("StateDirectoryMode"), keeps.then_some(("Service", "0700")));
        assert_eq!(text.contains(STATE), keeps);
        assert!(get("TimeoutStopSec").unwrap().1.parse::<u64>().unwrap() > drain());
        for (key, value) in [
            ("User", "ombra"),
            ("NoNewPrivileges", "yes"),
            ("CapabilityBoundingSet", ""),
            ("ProtectSystem", "strict"),
            ("MemoryDenyWriteExecute", "yes"),
            ("LimitCORE", "0"),
            ("MemoryMax", "75%"),
            ("UMask", "0077"),
            ("KillSignal", "SIGTERM"),
        ] {
            assert_eq!(get(key), Some(("Service", value)), "{party}: {key}");
        }
        // Where systemd is installed, it reads the unit too; it wants the program to be there.
        let here = folder.join(&format!("ombra-{party}.service"));
        fs::write(&here, text.replace("/usr/local/bin/ombra-run", env!("CARGO_BIN_EXE_ombra-run"))).unwrap();
        if let Ok(output) = Command::new("systemd-analyze").arg("verify").arg(&here).output() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success() && !said.contains("ombra-"), "{said}");
        }
    }
}

#[test]
fn manifests_name_what_they_have() {
    SETTINGS.into_iter().for_each(|(setting, third)| check_manifests(setting, third));
}

fn check_manifests(setting: &str, third: Option<&str>) {
    let folder = written(setting);
    for (party, port) in [("server", 7001)].into_iter().chain(third.map(|third| (third, 7002))) {
        let text = fs::read_to_string(folder.join(&format!("kubernetes/ombra-{party}.yaml"))).unwrap();
        let documents: Vec<Value> =
            serde_norway::Deserializer::from_str(&text).map(|document| Value::deserialize(document).unwrap()).collect();
        let [deployment, service, policy] = &documents[..] else { panic!("{} documents", documents.len()) };
        for (document, api, kind) in [
            (deployment, "apps/v1", "Deployment"),
            (service, "v1", "Service"),
            (policy, "networking.k8s.io/v1", "NetworkPolicy"),
        ] {
            let keys: Vec<&str> = document.as_object().unwrap().keys().map(String::as_str).collect();
            assert_eq!(keys, ["apiVersion", "kind", "metadata", "spec"]);
            assert_eq!((&document["apiVersion"], &document["kind"]), (&Value::from(api), &Value::from(kind)));
            assert_eq!(document["metadata"]["name"], format!("ombra-{party}"));
        }
        let labels = &deployment["spec"]["template"]["metadata"]["labels"];
        assert_eq!(labels["app.kubernetes.io/component"], party);
        for selector in [
            &deployment["spec"]["selector"]["matchLabels"],
            &service["spec"]["selector"],
            &policy["spec"]["podSelector"]["matchLabels"],
        ] {
            assert_eq!(selector, labels);
        }
        // A second replica would get connections of the first one's sessions.
        assert_eq!(
            (&deployment["spec"]["replicas"], &deployment["spec"]["strategy"]["type"]),
            (&1.into(), &"Recreate".into())
        );
        let pod = &deployment["spec"]["template"]["spec"];
        assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() > drain());
        assert_eq!(pod["automountServiceAccountToken"], false);
        assert_eq!(
            (&pod["securityContext"]["runAsNonRoot"], &pod["securityContext"]["runAsUser"]),
            (&true.into(), &10001.into())
        );
        let container = &pod["containers"][0];
        let arguments: Vec<&str> =
            container["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()).collect();
        check_command(&arguments, party, setting);
        let own = &container["securityContext"];
        assert_eq!((&own["allowPrivilegeEscalation"], &own["readOnlyRootFilesystem"]), (&false.into(), &true.into()));
        assert_eq!(own["capabilities"]["drop"][0], "ALL");
        let names = |list: &Value| -> BTreeSet<String> {
            list.as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(names(&container["volumeMounts"]), names(&pod["volumes"]));
        let keeps = arguments.contains(&"--material");
        let mounts = container["volumeMounts"].as_array().unwrap();
        let state = mounts.iter().find(|mount| mount["mountPath"] == STATE);
        assert_eq!(state.map(|mount| mount["readOnly"].clone()), keeps.then_some(Value::Null), "it can be written to");
        assert_eq!(text.contains("ombra-state-server"), keeps);
        let ports = names(&container["ports"]);
        for probe in ["livenessProbe", "readinessProbe"] {
            assert!(ports.contains(container[probe]["httpGet"]["port"].as_str().unwrap()));
        }
        assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/readyz");
        let listed = |name: &str| {
            let ports = container["ports"].as_array().unwrap();
            ports.iter().find(|port| port["name"] == name).map(|port| port["containerPort"].clone()).unwrap()
        };
        assert_eq!(listed(service["spec"]["ports"][0]["targetPort"].as_str().unwrap()), port);
        assert_eq!(policy["spec"]["ingress"][0]["ports"][0]["port"], port);
        assert_eq!(policy["spec"]["ingress"][1]["ports"][0]["port"], listed("metrics"));
        let reaches = policy["spec"]["egress"].as_array().unwrap().len();
        let some = party == "server" && third.is_some();
        assert_eq!(reaches, if some { 2 } else { 0 }, "in {setting} the {party} connects to nobody");
        let secret = pod["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == "party").unwrap();
        assert_eq!(secret["secret"]["secretName"], format!("ombra-{party}"));
        assert_eq!(secret["secret"]["defaultMode"], 0o440);
    }
}
