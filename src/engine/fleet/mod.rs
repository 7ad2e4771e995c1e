//! BuildKits of their own, one or several: `BUILDKIT_HOST`.
//!
//! Each application has a host of its own, where its cache is warm ([`choice`]); another one builds where that one
//! is busy, or gone. Images go straight from there to the registry, so no host has to keep any.

mod choice;
mod host;
mod room;

use std::collections::BTreeSet;
use std::future::ready;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::future::select_ok;
use image_builder_actors::model::build_log::BuildLog;
use image_builder_actors::model::fault::{Fault, Reason, StageName};
use image_builder_actors::model::image::{BuildKey, BuiltImage, ImageLocation};
use image_builder_actors::model::reference::ImageReference;
use image_builder_actors::model::secret::Tripwire;
use image_builder_actors::ports::{BuildOrder, Claim, Exposed, ImageBuilder, Plan};
use tokio::sync::{Mutex, watch};

use self::choice::{Standing, rank, turn};
use self::host::Host;
use super::address::{Address, BadCertificate, client_config};
use super::buildkit::inputs::{self, Now};
use super::buildkit::times::FileTimes;
use super::docker::disk::size::{Size, Watermark};
use super::docker::disk::space::Place;
use super::settings::BuildSettings;
use crate::net::address::without_credentials;

/// How often the hosts are pruned down to the budget.
const BETWEEN_TIDYINGS: Duration = Duration::from_secs(5 * 60);

/// Which hosts there are, and what builds may do there.
#[derive(Debug, Clone)]
pub struct FleetSettings {
    /// `BUILDKIT_HOST`: `unix://PATH` or `tcp://HOST:PORT`, separated by commas.
    pub hosts: Vec<String>,
    /// `BUILDKIT_TLS_DIR`: the directory with `ca.pem`, `cert.pem` and `key.pem`; with it `tcp://` means TLS.
    pub tls_dir: Option<PathBuf>,
    /// `BUILDKIT_DRAIN`: those of the hosts on which no build begins any more.
    pub drain: Vec<String>,
    /// `BUILDKIT_BUILDS_PER_HOST`: with so many in hand a host has enough, and others of its builds go elsewhere.
    pub builds_per_host: usize,
    /// `CACHE_BUDGET`: what the cache of each host may hold.
    pub budget: Size,
    /// `DISK_LOW_WATERMARK`: with less free space in `DATA_DIR` nothing is built.
    pub low: Watermark,
    /// What builds may do.
    pub builds: BuildSettings,
}

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FleetSettingsError {
    #[error("BUILDKIT_HOST: `{}` is not unix:///PATH or tcp://HOST:PORT", without_credentials(.0))]
    Host(String),
    #[error("BUILDKIT_HOST: `{0}` is named twice")]
    Twice(String),
    #[error("BUILDKIT_TLS_DIR: {0}")]
    Certificate(BadCertificate),
    #[error("BUILDKIT_DRAIN: `{}` is none of BUILDKIT_HOST", without_credentials(.0))]
    Drain(String),
    #[error("BUILDKIT_DRAIN: names all of BUILDKIT_HOST, so that nothing could be built")]
    AllDrain,
}

/// Several BuildKits. Clones share everything.
#[derive(Clone)]
pub struct Fleet {
    inner: Arc<Inner>,
}

struct Inner {
    hosts: Vec<Host>,
    /// What is remembered of the contexts that were sent to them.
    times: Arc<FileTimes>,
    settings: FleetSettings,
    data_dir: Place,
    /// What the caches held when they were last counted, in bytes.
    held: watch::Sender<u64>,
    /// Jobs that a host may die of take turns.
    claim: Arc<Mutex<()>>,
}

impl Fleet {
    /// Opens no connection: hosts may be down and come up later.
    ///
    /// # Errors
    /// A setting cannot be used.
    pub fn new(settings: FleetSettings, data_dir: PathBuf) -> Result<Self, FleetSettingsError> {
        let tls = settings.tls_dir.as_deref().map(client_config).transpose();
        let tls = tls.map_err(FleetSettingsError::Certificate)?.map(|mut config| {
            config.alpn_protocols = vec![b"h2".to_vec()];
            Arc::new(config)
        });
        if let Some(unknown) = settings.drain.iter().find(|name| !settings.hosts.contains(name)) {
            return Err(FleetSettingsError::Drain(unknown.clone()));
        }
        let mut hosts = Vec::<Host>::new();
        // What was sent to one host is as good at another.
        let times = Arc::<FileTimes>::default();
        for name in &settings.hosts {
            let address = Address::of_buildkit(name, tls.as_ref());
            let address = address.ok_or_else(|| FleetSettingsError::Host(name.clone()))?;
            if hosts.iter().any(|known| known.name == *name) {
                return Err(FleetSettingsError::Twice(name.clone()));
            }
            let drains = settings.drain.contains(name);
            let builds = settings.builds.clone();
            hosts.push(Host::new(name.clone(), address, drains, builds, Arc::clone(&times)));
        }
        if hosts.iter().all(|host| host.drains) {
            return Err(FleetSettingsError::AllDrain);
        }
        let inner = Inner {
            hosts,
            times,
            data_dir: Place { name: "the disk of DATA_DIR", path: data_dir },
            held: watch::Sender::new(0),
            claim: Arc::default(),
            settings,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The names of the hosts, as `BUILDKIT_HOST` has them.
    pub fn hosts(&self) -> Vec<String> {
        self.inner.hosts.iter().map(|host| host.name.clone()).collect()
    }

    /// How many builds of this worker each host has in hand, by its name.
    pub fn in_hand(&self) -> Vec<(String, usize)> {
        self.inner.hosts.iter().map(|host| (host.name.clone(), host.in_hand())).collect()
    }

    /// Whether one host answers, and can do what is asked of it.
    ///
    /// # Errors
    /// Why not, for an operator.
    pub async fn look_at(&self, name: &str) -> Result<(), String> {
        let host = self.inner.hosts.iter().find(|host| host.name == name);
        let host = host.ok_or_else(|| format!("{name} is none of BUILDKIT_HOST"))?;
        host.look().await.map_err(|fault| fault.message)
    }

    /// Whether any host can build. All are asked at once.
    ///
    /// # Errors
    /// What is wrong with the last of them.
    pub async fn look(&self) -> Result<(), String> {
        let taking = self.inner.hosts.iter().filter(|host| !host.drains);
        let looked = select_ok(taking.map(|host| Box::pin(host.look()))).await;
        looked.map(drop).map_err(|fault| fault.message)
    }

    /// The host that a build is to go to. `tried` are those that did not take it.
    fn next(&self, reference: &ImageReference, tried: &[usize]) -> Option<usize> {
        let most = self.inner.settings.builds_per_host;
        let names = self.inner.hosts.iter().map(|host| host.name.as_str());
        let open = rank(names, &reference.repository).into_iter().filter_map(|at| {
            let host = &self.inner.hosts[at];
            let in_hand = host.in_hand();
            let standing = Standing { is_out: host.is_out(), is_full: in_hand >= most, in_hand };
            (!host.drains && !tried.contains(&at)).then_some((at, standing))
        });
        turn(open)
    }
}

impl ImageBuilder for Fleet {
    fn inputs<'a>(&'a self, plan: &'a Plan) -> BoxFuture<'a, Result<Option<String>, Fault>> {
        Box::pin(async move {
            let known = |bases: BTreeSet<String>| {
                ready(bases.iter().map(|base| Now::by_digest(base)).collect())
            };
            inputs::name(plan, &self.inner.settings.builds.limits, &self.inner.times, known).await
        })
    }

    fn build<'a>(
        &'a self,
        order: &'a BuildOrder,
        progress: &'a BuildLog,
    ) -> BoxFuture<'a, Result<ImageLocation, Fault>> {
        Box::pin(async move {
            if let Err(complaint) = self.look_at_disk().await {
                let message = format!("The build waits for room: {complaint}.");
                return Err(Fault::new(StageName::Builder, Reason::DiskLow, message));
            }
            let mut tried = Vec::new();
            let mut unreached = None;
            while let Some(at) = self.next(&order.reference, &tried) {
                let host = &self.inner.hosts[at];
                let _turn = host.take();
                if let Err(fault) = host.reach().await {
                    tracing::warn!(host = host.name, "{}", fault.message);
                    progress.note("a build host is out of reach: another one is asked");
                    tried.push(at);
                    unreached = Some(fault);
                    continue;
                }
                tracing::info!(host = host.name, "building");
                let built = host.build(order, progress).await;
                if built.as_ref().is_err_and(|fault| fault.reason == Reason::DiskLow) {
                    return Err(self.ran_full(host).await);
                }
                return built;
            }
            Err(unreached.unwrap_or_else(|| {
                Fault::new(StageName::Builder, Reason::EngineDown, "There is no host to build on.")
            }))
        })
    }

    /// No host keeps images: those that were built are in the registry.
    fn find<'a>(
        &'a self,
        _: &'a BuildKey,
        _: &'a ImageReference,
    ) -> BoxFuture<'a, Result<Option<BuiltImage>, Fault>> {
        Box::pin(async move { Ok(None) })
    }

    /// Of this worker's jobs one at a time: a `buildkitd` has nothing by which workers could tell each other.
    fn claim(&self) -> BoxFuture<'_, Result<Option<Claim>, Fault>> {
        Box::pin(
            async move { Ok(self.inner.claim.clone().try_lock_owned().ok().map(Claim::held_by)) },
        )
    }

    fn search<'a>(
        &'a self,
        _: &'a BuiltImage,
        _: &'a Tripwire,
        _: bool,
        _: &'a BuildLog,
    ) -> BoxFuture<'a, Result<Option<Exposed>, Fault>> {
        Box::pin(async move { Ok(None) })
    }

    fn push<'a>(
        &'a self,
        image: &'a BuiltImage,
        reference: &'a ImageReference,
        _: &'a BuildLog,
    ) -> BoxFuture<'a, Result<String, Fault>> {
        Box::pin(async move {
            let id = &image.id;
            let message =
                format!("cannot push `{reference}`: no build host keeps images, nor has {id}");
            Err(Fault::new(StageName::Pusher, Reason::EngineFailed, message))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(hosts: &[&str], drain: &[&str]) -> FleetSettings {
        let all = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        FleetSettings {
            hosts: all(hosts),
            tls_dir: None,
            drain: all(drain),
            builds_per_host: 1,
            budget: Size(0),
            low: "0%".parse().expect("a watermark"),
            builds: BuildSettings::default(),
        }
    }

    fn fleet(hosts: &[&str], drain: &[&str]) -> Result<Fleet, FleetSettingsError> {
        Fleet::new(settings(hosts, drain), ".".into())
    }

    /// The application's own host, which takes the build where nothing is amiss.
    fn home(fleet: &Fleet, reference: &ImageReference) -> Option<usize> {
        fleet.next(reference, &[])
    }

    #[test]
    fn bad_addresses_are_named() {
        for (hosts, drain, said) in [
            (&["tcp://a:1", "ssh://b"][..], &[][..], "is not unix:///PATH"),
            (&["unix://relative"], &[], "`unix://relative` is not"),
            (&["docker-container://b"], &[], "is not unix:///PATH"),
            (&["tcp://a", "tcp://a"], &[], "named twice"),
            (&["tcp://a"], &["tcp://b"], "BUILDKIT_DRAIN: `tcp://b`"),
            (&["tcp://a"], &["tcp://a"], "nothing could be built"),
        ] {
            let error = fleet(hosts, drain).err().map(|error| error.to_string());
            assert!(error.as_ref().is_some_and(|error| error.contains(said)), "{error:?}");
        }
        assert!(fleet(&["tcp://a", "unix:///run/b.sock", "tcp://[::1]:9"], &[]).is_ok());
    }

    #[test]
    fn a_host_that_drains_takes_nothing_and_one_that_is_full_is_passed_over() {
        let names = ["tcp://a", "tcp://b", "tcp://c"];
        let reference = ImageReference::for_build("r:1", "alice", "shop", "c");
        let all = fleet(&names, &[]).expect("good settings");
        let own = home(&all, &reference).expect("there is one");
        assert_eq!(home(&all, &reference), Some(own));

        let draining = fleet(&names, &[names[own]]).expect("good settings");
        let second = home(&draining, &reference).expect("there is one");
        assert_ne!(second, own);

        let turn = all.inner.hosts[own].take();
        assert_eq!(home(&all, &reference), Some(second), "its own host has enough to do");
        assert_eq!(all.next(&reference, &[second]), Some(3 - own - second));
        drop(turn);
        assert_eq!(home(&all, &reference), Some(own));
    }
}
