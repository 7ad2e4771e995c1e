//! How other networks are reached.

use super::reader::Reader;
use crate::net::networks::Networks;
use crate::net::proxy::Proxies;

/// How other networks are reached, and by which certificates servers are known.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// As builds are told of them.
    pub proxies: Proxies,
    /// What may be reached for strangers though it is not public.
    pub allowed: Networks,
    /// Hosts from which strangers' builds may add files.
    pub allowed_hosts: Vec<String>,
    certificates: [(&'static str, Option<String>); 2],
}

impl NetworkConfig {
    pub(super) fn read(read: &mut Reader<'_>) -> Self {
        let file = read.ssl_cert_file().map(|file| file.display().to_string());
        Self {
            proxies: Proxies {
                http: read.http_proxy(),
                https: read.https_proxy(),
                exempt: read.no_proxy(),
            },
            allowed: read.builder_allow_cidr().unwrap_or_default(),
            allowed_hosts: read.builder_allow_hosts(),
            certificates: [("SSL_CERT_FILE", file), ("SSL_CERT_DIR", read.ssl_cert_dir())],
        }
    }

    /// The proxies, as the worker itself uses them.
    pub fn own_proxies(&self) -> Proxies {
        self.proxies.clone().with_this_machine_exempt()
    }

    /// The variables that libraries read.
    pub(super) fn variables(&self) -> impl Iterator<Item = (String, String)> {
        let certificates = self.certificates.iter().cloned();
        let certificates = certificates.filter_map(|(name, value)| Some((name.to_owned(), value?)));
        self.own_proxies().variables().into_iter().chain(certificates)
    }
}
