//! What is read of the settings: all of it, or what a command needs.

use std::path::PathBuf;

use image_builder_actors::model::limits::Limits;

use super::engine::{DiskConfig, engine, fleet};
use super::environment::Environment;
use super::forge::ForgeConfig;
use super::network::NetworkConfig;
use super::reader::{Effective, Reader};
use super::registry::RegistryConfig;
use super::table::Setting;
use super::worker::{ApiConfig, NotifyConfig};
use super::{Config, ConfigErrors};
use crate::engine::docker::DockerSettings;
use crate::engine::fleet::FleetSettings;

impl Environment {
    /// The settings.
    ///
    /// # Errors
    ///
    /// All bad and missing values.
    pub fn config(&self) -> Result<Config, ConfigErrors> {
        self.effective().map(|(config, _)| config)
    }

    /// The settings, and of each what is to be shown of it, in the order of the table.
    ///
    /// # Errors
    ///
    /// All bad and missing values.
    pub fn effective(&self) -> Result<(Config, Vec<Effective>), ConfigErrors> {
        let mut reader = Reader::new(self);
        reader.errors.clone_from(&self.errors);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let config = Config::assemble(&mut reader, cores);
        let (config, mut effective) = reader.finish(config)?;
        effective.sort_by_key(|it| Setting::all().position(|one| std::ptr::eq(one, it.setting)));
        Ok((config, effective))
    }

    /// Gives the process those variables that libraries read out of its environment by themselves, and child
    /// processes expect there: of proxies and certificates. They may stand in a file, and in either case.
    ///
    /// Bad ones are left as they are; whoever reads the settings says what is wrong with them.
    ///
    /// # Safety
    /// No other thread may be there yet.
    #[allow(unsafe_code, reason = "there is no other way to give libraries these variables")]
    pub unsafe fn give_to_libraries(&self) {
        let network = NetworkConfig::read(&mut Reader::new(self));
        for (name, value) in network.variables() {
            // SAFETY: the caller promises that nobody else reads or writes the environment.
            unsafe { std::env::set_var(name, value) };
        }
    }

    /// What a command needs that builds by itself, whatever else is set.
    ///
    /// # Errors
    ///
    /// All of these that are bad.
    pub fn tools(&self) -> Result<ToolConfig, ConfigErrors> {
        let mut reader = Reader::new(self);
        let disk = DiskConfig::read(&mut reader);
        let tools = ToolConfig::read(&mut reader, &disk);
        reader.finish(Some(tools)).map(|(tools, _)| tools)
    }

    /// What `image-builder doctor` looks at one by one, whatever else is set.
    ///
    /// # Errors
    ///
    /// All of these that are bad.
    pub fn doctor(&self) -> Result<DoctorConfig, ConfigErrors> {
        let mut reader = Reader::new(self);
        let disk = DiskConfig::read(&mut reader);
        let tools = ToolConfig::read(&mut reader, &disk);
        let doctor = DoctorConfig {
            tools,
            disk,
            notify: NotifyConfig::read(&mut reader),
            data_dir: reader.data_dir(),
        };
        reader.finish(Some(doctor)).map(|(doctor, _)| doctor)
    }

    /// `HTTP_ADDR` alone, whatever else is set.
    ///
    /// # Errors
    ///
    /// It is bad.
    pub fn http_addr(&self) -> Result<String, ConfigErrors> {
        let mut reader = Reader::new(self);
        let address = reader.http_addr();
        reader.finish(Some(address)).map(|(address, _)| address)
    }

    /// How a service is asked, whatever else is set.
    ///
    /// # Errors
    ///
    /// All bad values of it.
    pub fn api(&self) -> Result<ApiConfig, ConfigErrors> {
        let mut reader = Reader::new(self);
        let api = ApiConfig::read(&mut reader);
        reader.finish(Some(api)).map(|(api, _)| api)
    }
}

/// The settings that a command needs which builds by itself: no queue is among them.
#[derive(Debug, Clone)]
pub struct ToolConfig {
    pub engine: DockerSettings,
    /// What builds in place of that engine.
    pub fleet: Option<FleetSettings>,
    pub registry: RegistryConfig,
    pub forge: ForgeConfig,
    pub network: NetworkConfig,
    pub limits: Limits,
    /// The directory of the user who calls.
    pub home: Option<PathBuf>,
}

impl ToolConfig {
    fn read(read: &mut Reader<'_>, disk: &DiskConfig) -> Self {
        let limits = Limits::default();
        let network = NetworkConfig::read(read);
        let engine = engine(read, &network, limits.clone());
        Self {
            fleet: fleet(read, &engine, disk, 1),
            engine,
            network,
            registry: RegistryConfig::read(read),
            forge: ForgeConfig::read(read),
            limits,
            home: read.home().map(PathBuf::from),
        }
    }
}

/// The settings that `image-builder doctor` looks at one by one, with those of [`ToolConfig`].
#[derive(Debug, Clone)]
pub struct DoctorConfig {
    pub tools: ToolConfig,
    pub disk: DiskConfig,
    pub notify: NotifyConfig,
    pub data_dir: PathBuf,
}
