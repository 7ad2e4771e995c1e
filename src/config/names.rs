//! Names that are none of a setting, and what was perhaps meant.

use super::table::Setting;

/// The setting that a name is a slip of, with the variable that was meant. Slips keep the first letter; a
/// long name may have two of them.
pub(super) fn meant(name: &str) -> Option<(&'static Setting, String)> {
    let name = name.to_ascii_uppercase();
    let known =
        Setting::all().flat_map(|it| it.variables().map(move |variable| (it, variable.name())));
    let near = known.filter_map(|(setting, variable)| {
        let slips = strsim::osa_distance(&name, &variable);
        let allowed = if variable.len() < 12 { 1 } else { 2 };
        (slips <= allowed && name.get(..1) == variable.get(..1))
            .then_some((slips, setting, variable))
    });
    near.min_by_key(|(slips, ..)| *slips).map(|(_, setting, variable)| (setting, variable))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_told_from_a_foreign_name() {
        for (slip, variable) in [
            ("BULIDER_TIMEOUT", "BUILDER_TIMEOUT"),
            ("BUILD_TIMEOUT", "BUILDER_TIMEOUT"),
            ("RABBITMQ_URL", "RABBITMQ_URI"),
            ("AMQP_URI", "AMQP_URL"),
            ("builder_timeout", "BUILDER_TIMEOUT"),
            ("DATADIR", "DATA_DIR"),
            ("REGISTRY_PASSWORDFILE", "REGISTRY_PASSWORD_FILE"),
            ("CACHE_BUGDET", "CACHE_BUDGET"),
        ] {
            assert_eq!(meant(slip).map(|(_, meant)| meant).as_deref(), Some(variable), "{slip}");
        }
        for foreign in [
            "PATH",
            "HOME",
            "TZ",
            "MAIL_QUEUE",
            "ALL_PROXY",
            "FTP_PROXY",
            "RUST_BACKTRACE",
            "DOCKER_CONTEXT",
            "GITHUB_TOKEN",
            "GITHUB_REF",
            "GITHUB_ENV",
            "GITHUB_SERVER_URL",
            "REGISTRY_PORT",
            "REGISTRY_SERVICE_HOST",
            "RABBITMQ_PORT",
            "RABBITMQ_NODENAME",
            "RABBITMQ_MANAGEMENT_URL",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "OTEL_TRACES_SAMPLER",
            "IMAGE_BUILDER_TOKEN",
            "BUILDKIT_PROGRESS",
            "SSL_KEY_FILE",
            "LOG_LEVEL",
            "FAILPOINTS",
            "",
        ] {
            assert!(meant(foreign).is_none(), "{foreign}");
        }
    }
}
