//! Where traces go: OpenTelemetry's own variables, put together.

use reqwest::Url;
use uuid::Uuid;

use super::reader::Reader;
use crate::telemetry::traces::TraceSettings;

/// `OTEL_SERVICE_NAME` where it is not set.
const SERVICE_NAME: &str = "image-builder";

/// `None` = there are no traces.
pub(super) fn read(read: &mut Reader<'_>) -> Option<TraceSettings> {
    let headers = read.otel_exporter_otlp_headers().unwrap_or_default();
    read.otel_exporter_otlp_protocol();
    let mut resource = read.otel_resource_attributes().unwrap_or_default();
    let service = read.otel_service_name();
    let url = read.otel_exporter_otlp_endpoint()?;
    if let Some(service) = service {
        resource.retain(|(name, _)| name != "service.name");
        resource.push(("service.name".to_owned(), service));
    }
    let instance = Uuid::new_v4().to_string();
    for (name, default) in [
        ("service.name", SERVICE_NAME),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("service.instance.id", &instance),
    ] {
        if !resource.iter().any(|(known, _)| known == name) {
            resource.push((name.to_owned(), default.to_owned()));
        }
    }
    Some(TraceSettings { url: traces_url(url), headers, resource })
}

/// The address of traces below the endpoint's, as the protocol has it.
fn traces_url(mut endpoint: Url) -> Url {
    let path = format!("{}/v1/traces", endpoint.path().trim_end_matches('/'));
    endpoint.set_path(&path);
    endpoint
}
