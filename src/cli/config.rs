//! `sealbd config check`: every error of the configuration, or what it says.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use keymgmt::registry::Registry;
use serde::Serialize;

use super::outcome::{EXIT_USAGE, Failure};
use super::output::Output;
use super::settings::{Listen, Problem, Settings, VolumeSettings};

/// What is told of a configuration that cannot be used, when something else was asked for.
pub(super) fn refused(problems: &[Problem]) -> Failure {
    let first = problems.first().map_or_else(String::new, Problem::to_string);
    let more = match problems.len() {
        0 | 1 => String::new(),
        count => format!(" (and {} more)", count - 1),
    };
    Failure::config(format!("{first}{more}"), "sealbd config check tells all that is wrong there")
}

#[derive(Serialize)]
struct Report {
    files: Vec<String>,
    control_directory: Option<String>,
    audit_path: Option<String>,
    providers: Vec<ProviderReport>,
    volumes: Vec<VolumeReport>,
    problems: Vec<ProblemReport>,
}

#[derive(Serialize)]
struct ProviderReport {
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
}

#[derive(Serialize)]
struct VolumeReport {
    name: String,
    backend: String,
    uuid: Option<String>,
    slots: Vec<String>,
    listen: Option<String>,
    rotate_kek: Option<String>,
    read_only: bool,
    direct: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    anchor: Option<PathBuf>,
}

#[derive(Serialize)]
struct ProblemReport {
    file: String,
    line: Option<usize>,
    message: String,
}

/// Runs the command: exit 1 when something is wrong.
pub(super) fn check(file: Option<&Path>, output: &Output) -> Result<ExitCode, Failure> {
    let problems = match Settings::load(file) {
        Ok((settings, registry)) => {
            let report = report(&settings, &registry);
            output.result(&report, || prose(&report));
            return Ok(ExitCode::SUCCESS);
        }
        Err(problems) => problems,
    };
    let failure = Failure::config(
        format!("{} in the configuration", errors(problems.len())),
        "docs/CONFIG.md has every key; sealbd config check again when they are corrected",
    );
    let report = Report {
        files: Vec::new(),
        control_directory: None,
        audit_path: None,
        providers: Vec::new(),
        volumes: Vec::new(),
        problems: problems.iter().map(problem_report).collect(),
    };
    output.result(&report, || problems.iter().map(|problem| format!("{problem}\n")).collect());
    output.tell(&failure);
    Ok(ExitCode::from(EXIT_USAGE))
}

fn errors(count: usize) -> String {
    if count == 1 { "1 error".into() } else { format!("{count} errors") }
}

fn problem_report(problem: &Problem) -> ProblemReport {
    let Problem { file, line, text } = problem;
    ProblemReport { file: file.display().to_string(), line: *line, message: text.clone() }
}

fn report(settings: &Settings, registry: &Registry) -> Report {
    let shown = |path: &Path| path.display().to_string();
    let provider = |provider: &keymgmt::provider::Provider| ProviderReport {
        name: provider.name.clone(),
        kind: provider.kind(),
    };
    Report {
        files: settings.files.iter().map(|file| shown(file)).collect(),
        control_directory: settings.control_directory().as_deref().map(shown),
        audit_path: settings.audit_path.as_deref().map(shown),
        providers: registry.providers().iter().map(provider).collect(),
        volumes: settings.volumes.iter().map(volume_report).collect(),
        problems: Vec::new(),
    }
}

fn volume_report(volume: &VolumeSettings) -> VolumeReport {
    let VolumeSettings { name, backend, uuid, slots, listen, rotate_kek, read_only, direct, anchor, .. } =
        volume;
    VolumeReport {
        name: name.clone(),
        backend: backend.to_string(),
        uuid: uuid.map(|uuid| uuid.to_string()),
        slots: slots.clone(),
        listen: listen.as_ref().map(|listen| match listen {
            Listen::Unix(path) => format!("unix:{}", path.display()),
            Listen::Tcp(address) => format!("tcp:{address}"),
        }),
        rotate_kek: rotate_kek.map(|period| exact(period.as_secs())),
        read_only: *read_only,
        direct: *direct,
        anchor: anchor.clone(),
    }
}

/// A time as it is written in a configuration.
fn exact(seconds: u64) -> String {
    match seconds {
        days if days.is_multiple_of(86_400) => format!("{}d", days / 86_400),
        hours if hours.is_multiple_of(3600) => format!("{}h", hours / 3600),
        _ => format!("{seconds}s"),
    }
}

fn prose(report: &Report) -> String {
    let Report { files, control_directory, audit_path, providers, volumes, problems: _ } = report;
    if files.is_empty() {
        return "there is no configuration\n".into();
    }
    let mut text = format!("files              {}\n", files.join(", "));
    if let Some(directory) = control_directory {
        text.push_str(&format!("control directory  {directory}\n"));
    }
    if let Some(path) = audit_path {
        text.push_str(&format!("audit log          {path}\n"));
    }
    for ProviderReport { name, kind } in providers {
        text.push_str(&format!("provider {name}  {kind}\n"));
    }
    for VolumeReport { name, backend, uuid, slots, listen, rotate_kek, read_only, direct, anchor } in volumes
    {
        text.push_str(&format!("volume {name}  {backend}\n"));
        let parts = [
            ("uuid", uuid.clone()),
            ("slots", (!slots.is_empty()).then(|| slots.join(", "))),
            ("listen", listen.clone()),
            ("rotate_kek", rotate_kek.clone()),
            ("read_only", read_only.then(|| "true".to_owned())),
            ("direct", direct.then(|| "true".to_owned())),
            ("anchor", anchor.as_ref().map(|directory| directory.display().to_string())),
        ];
        for (key, value) in parts {
            if let Some(value) = value {
                text.push_str(&format!("  {key:<11} {value}\n"));
            }
        }
    }
    text.push_str("no errors\n");
    text
}
