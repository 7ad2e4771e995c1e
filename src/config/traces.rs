//! The settings of traces: OpenTelemetry's own variables.

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use uuid::Uuid;

use super::read::{Found, Reader};
use crate::telemetry::traces::TraceSettings;

/// `OTEL_SERVICE_NAME` where it is not set.
const SERVICE_NAME: &str = "image-builder";

impl Reader {
    /// Where traces go; `None` = there are none.
    pub(super) fn traces(&mut self) -> Option<TraceSettings> {
        let raw = self.raw.clone();
        let headers = self.secret(
            "OTEL_EXPORTER_OTLP_HEADERS",
            raw.otel_exporter_otlp_headers,
            raw.otel_exporter_otlp_headers_file,
        );
        let headers = headers.map(|found| self.headers(&found)).unwrap_or_default();
        self.one_of(
            "OTEL_EXPORTER_OTLP_PROTOCOL",
            raw.otel_exporter_otlp_protocol,
            &["http/protobuf"],
        );
        let attributes = raw.otel_resource_attributes.unwrap_or_default();
        let resource = pairs(&attributes);
        if resource.is_none() {
            self.bad("OTEL_RESOURCE_ATTRIBUTES", "must look like name=value,name=value");
        }
        let name = "OTEL_EXPORTER_OTLP_ENDPOINT";
        let url = self.optional_url(name, raw.otel_exporter_otlp_endpoint)?;
        let mut resource = resource?;
        if let Some(service) = raw.otel_service_name {
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

    fn headers(&mut self, found: &Found) -> HeaderMap {
        // Not repeated: it holds a credential.
        let Some(pairs) = pairs(found.secret.expose()) else {
            self.bad(&found.variable, "must look like name=value,name=value");
            return HeaderMap::new();
        };
        let header = |(name, value): &(String, String)| {
            let mut value = HeaderValue::from_str(value).ok()?;
            value.set_sensitive(true);
            Some((HeaderName::from_bytes(name.as_bytes()).ok()?, value))
        };
        pairs.iter().map(header).collect::<Option<_>>().unwrap_or_else(|| {
            self.bad(&found.variable, "holds a name or a value that no HTTP header can have");
            HeaderMap::new()
        })
    }
}

/// The address of traces below the endpoint's, as the protocol has it.
fn traces_url(mut endpoint: Url) -> Url {
    let path = format!("{}/v1/traces", endpoint.path().trim_end_matches('/'));
    endpoint.set_path(&path);
    endpoint
}

/// `name=value,name=value`, percent-encoded.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (name, value) = part.split_once('=')?;
            let value = percent_encoding::percent_decode_str(value.trim()).decode_utf8().ok()?;
            let name = name.trim();
            (!name.is_empty()).then(|| (name.to_owned(), value.into_owned()))
        })
        .collect()
}
