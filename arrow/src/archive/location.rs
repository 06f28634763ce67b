//! The location of an archive: a folder or a prefix of an object store.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use futures::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};
use object_store::buffered::BufWriter;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, ObjectStoreScheme};
use parquet::errors::ParquetError;
use qi_core::record::Dataset;
use qi_core::{Datasets, Error, ErrorKind, Result, ResultExt as _};
use sha2::{Digest as _, Sha256};

use super::manifest::Settings;
use super::scratch::{PREFIX, Scratch};
use super::{Manifest, Period, PeriodLength, blocking, layout};
use crate::content::hex;
use crate::error::corrupt;
use crate::{Content, parquet_file};

/// The largest manifest in bytes. A manifest has less than 2 KiB.
const MAX_MANIFEST: u64 = 64 * 1024;
/// The size of one part of an upload.
const PART: usize = 8 * 1024 * 1024;
/// The number of parts of one file that are uploaded concurrently. Two more parts are in memory: the part that is read from
/// the file, and the part that the writer collects.
const PARTS_IN_FLIGHT: usize = 4;
/// The bytes at the end of a Parquet file that are read to find its metadata.
const FOOTER: u64 = 64 * 1024;

const SETTINGS: &str = "_archive.json";
const LOCK: &str = "_lock";
const PARTIAL: &str = "_partial";

/// The schemes of the URLs of object stores: S3, Google Cloud Storage and Azure, each with its aliases.
const SCHEMES: [&str; 8] = ["s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss"];
/// The largest number of folders in the path of a data file: dataset, exchange, symbol and interval.
const MAX_DEPTH: usize = 4;

/// The location of an archive: a folder, or a prefix of an object store.
#[derive(Debug, Clone)]
pub struct Archive {
    location: Location,
}

#[derive(Debug, Clone)]
enum Location {
    /// A folder of the local file system. Its files are opened directly, because the paths of `object_store` cannot
    /// represent every name.
    Folder(PathBuf),
    Objects {
        store: Arc<dyn ObjectStore>,
        root: Path,
    },
}

/// A file that was opened to be imported.
pub(super) struct Fetched {
    pub(super) file: File,
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

fn failed(error: object_store::Error) -> Error {
    use object_store::Error as E;
    let kind = match &error {
        E::NotFound { .. } => ErrorKind::NotFound,
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => ErrorKind::Unauthorized,
        E::InvalidPath { .. } | E::UnknownConfigurationKey { .. } => ErrorKind::Config,
        E::NotSupported { .. } | E::NotImplemented { .. } => ErrorKind::Unsupported,
        E::AlreadyExists { .. } | E::Precondition { .. } => ErrorKind::Conflict,
        // The listing of a bucket that does not exist has no variant.
        E::Generic { source, .. } if source.to_string().contains("status code: 404") => ErrorKind::NotFound,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, "archive.object_store", "archive")
        .with_message("the object store failed")
        .with_source(error)
}

fn io_failed(path: &FilePath, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::Unauthorized,
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory | io::ErrorKind::AlreadyExists => {
            ErrorKind::Config
        }
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, "archive.file", "archive")
        .with_message("the file cannot be written or read")
        .with_context("file", path.display())
        .with_source(error)
}

fn not_regular(path: &FilePath) -> Error {
    corrupt("archive.file.type", "the path is not a regular file").with_context("file", path.display())
}

pub(super) fn other_size(found: u64, expected: u64) -> Error {
    corrupt("archive.file.changed", "the size of the file differs from its manifest")
        .with_context("bytes", found)
        .with_context("expected", expected)
}

/// Opens a regular file. Opening a FIFO would wait for a writer.
fn open_regular(path: &FilePath) -> Result<File> {
    if !path.metadata().map_err(|e| io_failed(path, e))?.is_file() {
        return Err(not_regular(path));
    }
    File::open(path).map_err(|e| io_failed(path, e))
}

/// The error of a temporary file.
pub(super) fn scratch_failed(error: io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, "archive.file.temporary", "archive")
        .with_message("the temporary file cannot be written or read")
        .with_source(error)
}

fn upload_failed(error: io::Error) -> Error {
    match error.downcast::<object_store::Error>() {
        Ok(error) => failed(error),
        Err(error) => Error::new(ErrorKind::Unavailable, "archive.upload", "archive").with_source(error),
    }
}

fn bad_address(message: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Config, "archive.address", "open").with_message(message)
}

/// A parsed address.
enum Address {
    Folder(PathBuf),
    #[cfg_attr(not(feature = "cloud"), allow(dead_code, reason = "object stores need the feature"))]
    Url(url::Url),
}

/// Returns true for the address of S3, R2 or Azure as its vendor shows it. Other hosts would be read as web servers.
///
/// The crate `object_store` takes a bucket in the host whose name begins with `s3` for a bucket in the path.
fn is_https_of_a_vendor(url: &url::Url) -> bool {
    use ObjectStoreScheme::{AmazonS3, MicrosoftAzure};
    let is_clear = |host: &str| !host.starts_with("s3") || host.starts_with("s3.");
    url.scheme() == "https"
        && url.host_str().is_some_and(is_clear)
        && ObjectStoreScheme::parse(url).is_ok_and(|(store, _)| matches!(store, AmazonS3 | MicrosoftAzure))
}

fn parse_address(address: &str) -> Result<Address> {
    if address.is_empty() {
        return Err(bad_address("the address of the archive is empty"));
    }
    if !address.contains("://") {
        return Ok(Address::Folder(address.into()));
    }
    let url = url::Url::parse(address).map_err(|e| bad_address("the address is not a URL").with_source(e))?;
    if url.scheme() != "file" {
        if !SCHEMES.contains(&url.scheme()) && !is_https_of_a_vendor(&url) {
            let message = format_args!(
                "the address has the scheme {}; the known schemes are s3, gs, az and file, and https for the hosts \
                 of S3, R2 and Azure",
                url.scheme()
            );
            return Err(bad_address(message));
        }
        // An address of Azure may have the container in this place.
        let is_container = url.scheme().starts_with('a');
        if url.password().is_some() || !(url.username().is_empty() || is_container) {
            let message =
                "the address must not contain credentials; set the environment variables of the vendor";
            return Err(bad_address(message));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(bad_address("the address must not have a query or a fragment (`?` or `#`)"));
        }
        return Ok(Address::Url(url));
    }
    let path = url.to_file_path();
    path.map(Address::Folder).map_err(|()| bad_address("the address is not a path of this machine"))
}

/// The files of one series: the size of each data file, and whether it has a manifest.
pub(super) type Files = BTreeMap<Period, (Option<u64>, bool)>;

impl Archive {
    /// Opens an archive at an address: the path of a folder, or a URL of an object store such as `s3://bucket/prefix`.
    ///
    /// The options of the object store come from environment variables with the names that the vendor's tools use, for
    /// example `AWS_ACCESS_KEY_ID`, `AWS_REGION` and `AWS_ENDPOINT`. URLs of object stores need the feature `cloud`.
    ///
    /// # Errors
    /// `NotFound` for a folder that does not exist. `Config` for an address that is not known or not enabled.
    pub fn open(address: &str) -> Result<Self> {
        match parse_address(address)? {
            Address::Folder(path) => Self::folder(path),
            Address::Url(url) => Self::remote(&url),
        }
    }

    /// Opens an archive at an address as [`Archive::open`] does, for an export. If the folder is missing, the export
    /// creates it after the check of its options.
    ///
    /// # Errors
    /// `Config` for an address that is not known or not enabled, and for a path that is not a folder.
    pub fn create(address: &str) -> Result<Self> {
        let path = match parse_address(address)? {
            Address::Folder(path) => path,
            Address::Url(url) => return Self::remote(&url),
        };
        match path.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let path = std::path::absolute(&path).map_err(|e| io_failed(&path, e))?;
                Ok(Self { location: Location::Folder(path) })
            }
            _ => Self::folder(path),
        }
    }

    /// Opens the archive in a folder.
    ///
    /// # Errors
    /// `NotFound` for a folder that does not exist, `Config` for a path that is not a folder.
    pub fn folder(path: impl AsRef<FilePath>) -> Result<Self> {
        let path = path.as_ref();
        let folder = path.canonicalize().map_err(|e| io_failed(path, e))?;
        if !folder.is_dir() {
            return Err(io_failed(path, io::ErrorKind::NotADirectory.into()));
        }
        Ok(Self { location: Location::Folder(folder) })
    }

    #[cfg(feature = "cloud")]
    fn remote(url: &url::Url) -> Result<Self> {
        // TLS uses the same provider as the other clients of this library. A provider that the program has installed
        // before stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let options = std::env::vars_os().filter_map(|(key, value)| {
            let key = key.into_string().ok()?.to_ascii_lowercase();
            let is_option = ["aws_", "google_", "azure_"].iter().any(|prefix| key.starts_with(prefix));
            is_option.then_some((key, value.into_string().ok()?))
        });
        let (store, root) = object_store::parse_url_opts(url, options)
            .map_err(|e| bad_address("the object store of the address cannot be opened").with_source(e))?;
        Ok(Self { location: Location::Objects { store: store.into(), root } })
    }

    #[cfg(not(feature = "cloud"))]
    fn remote(_: &url::Url) -> Result<Self> {
        Err(bad_address("this program was built without object stores (feature `cloud`)"))
    }

    /// Opens the archive below a prefix of an object store.
    ///
    /// # Errors
    /// `Config` for a prefix with a part that object stores do not allow.
    pub fn in_store(store: Arc<dyn ObjectStore>, prefix: &str) -> Result<Self> {
        let root = Path::parse(prefix).map_err(|e| failed(e.into()))?;
        Ok(Self { location: Location::Objects { store, root } })
    }

    /// Locks the folder of the archive and removes the incomplete files of earlier exports. The lock ends with the
    /// returned file. An object store has neither.
    pub(super) async fn lock(&self) -> Result<Option<File>> {
        let Location::Folder(folder) = self.location.clone() else { return Ok(None) };
        blocking(move || {
            create_root(&folder)?;
            let partial = folder.join(PARTIAL);
            std::fs::create_dir_all(&partial).map_err(|e| io_failed(&partial, e))?;
            if partial.symlink_metadata().is_ok_and(|found| found.is_symlink()) {
                return Err(Error::new(ErrorKind::Config, "archive.partial", "export")
                    .with_message("the folder of incomplete files must not be a symbolic link")
                    .with_context("folder", partial.display()));
            }
            let path = folder.join(LOCK);
            if path.metadata().is_ok_and(|found| !found.is_file()) {
                return Err(not_regular(&path));
            }
            let file = File::options().create(true).truncate(false).write(true).open(&path);
            let file = file.map_err(|e| io_failed(&path, e))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::new(ErrorKind::Conflict, "archive.locked", "export")
                        .with_message("another export writes into this folder")
                        .with_context("folder", folder.display()));
                }
                Err(TryLockError::Error(e)) => return Err(io_failed(&path, e)),
            }
            for entry in std::fs::read_dir(&partial).map_err(|e| io_failed(&partial, e))? {
                let entry = entry.map_err(|e| io_failed(&partial, e))?;
                let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
                if is_file && entry.file_name().to_string_lossy().starts_with(PREFIX) {
                    std::fs::remove_file(entry.path()).map_err(|e| io_failed(&entry.path(), e))?;
                }
            }
            Ok(Some(file))
        })
        .await
    }

    /// Creates a file in progress.
    pub(super) fn scratch(&self) -> Result<Scratch> {
        let partial = match &self.location {
            Location::Folder(folder) => Some(folder.join(PARTIAL)),
            Location::Objects { .. } => None,
        };
        let at = partial.clone().unwrap_or_else(std::env::temp_dir);
        Scratch::new(partial.as_deref()).map_err(|e| io_failed(&at, e))
    }

    /// Gives a file its final name. A file of that name is replaced atomically. The file is durable afterwards, and it
    /// was read back. Returns its size and its SHA-256.
    pub(super) async fn publish(&self, scratch: Scratch, relative: &str) -> Result<(u64, String)> {
        let (mut file, temporary, bytes, sha256) = scratch.finish();
        match &self.location {
            Location::Folder(folder) => {
                let (folder, path) = (folder.clone(), folder.join(relative));
                blocking(move || {
                    let failed = |e| io_failed(&path, e);
                    let parent = path.parent().unwrap_or(&folder);
                    file.sync_all().map_err(failed)?;
                    create_folders(&folder, parent).map_err(failed)?;
                    if let Some(temporary) = temporary {
                        temporary.persist(&path).map_err(|e| io_failed(&path, e.error))?;
                    }
                    File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed)
                })
                .await?;
            }
            Location::Objects { store, root } => {
                let mut upload = BufWriter::with_capacity(store.clone(), below(root, relative)?, PART)
                    .with_max_concurrency(PARTS_IN_FLIGHT);
                file.seek(SeekFrom::Start(0)).map_err(scratch_failed)?;
                loop {
                    let (back, part) = blocking(move || {
                        let mut part = Vec::new();
                        (&mut file).take(PART as u64).read_to_end(&mut part).map_err(scratch_failed)?;
                        Ok((file, part))
                    })
                    .await?;
                    file = back;
                    if part.is_empty() {
                        break;
                    }
                    upload.put(part.into()).await.map_err(failed)?;
                }
                tokio::io::AsyncWriteExt::shutdown(&mut upload).await.map_err(upload_failed)?;
            }
        }
        if self.hash(relative).await? != (bytes, sha256.clone()) {
            return Err(corrupt(
                "archive.file.changed",
                "the file that was written has other bytes when it is read back",
            )
            .with_context("file", relative));
        }
        Ok((bytes, sha256))
    }

    /// Returns the size and the SHA-256 of a file.
    pub(super) async fn hash(&self, relative: &str) -> Result<(u64, String)> {
        let (store, root) = match &self.location {
            Location::Objects { store, root } => (store, root),
            Location::Folder(folder) => {
                let path = folder.join(relative);
                return blocking(move || {
                    hash_file(&open_regular(&path)?, u64::MAX).map_err(|e| io_failed(&path, e))
                })
                .await;
            }
        };
        let (mut hash, mut bytes) = (Sha256::new(), 0);
        let mut parts = store.get(&below(root, relative)?).await.map_err(failed)?.into_stream();
        while let Some(part) = parts.next().await {
            let part = part.map_err(failed)?;
            bytes += part.len() as u64;
            hash.update(&part);
        }
        Ok((bytes, hex(&hash.finalize())))
    }

    /// Opens a data file of the expected size. A file of an object store is copied to an unnamed temporary file. Reads
    /// at most one part more than the expected size.
    pub(super) async fn fetch(&self, relative: &str, expected: u64) -> Result<Fetched> {
        let (store, root) = match &self.location {
            Location::Objects { store, root } => (store, root),
            Location::Folder(folder) => {
                let path = folder.join(relative);
                return blocking(move || {
                    let file = open_regular(&path)?;
                    let bytes = file.metadata().map_err(|e| io_failed(&path, e))?.len();
                    if bytes != expected {
                        return Err(other_size(bytes, expected));
                    }
                    let hashed = hash_file(&file, expected.saturating_add(1));
                    let (bytes, sha256) = hashed.map_err(|e| io_failed(&path, e))?;
                    Ok(Fetched { file, bytes, sha256 })
                })
                .await;
            }
        };
        let mut scratch = Scratch::new(None).map_err(scratch_failed)?;
        let found = store.get(&below(root, relative)?).await.map_err(failed)?;
        if found.meta.size != expected {
            return Err(other_size(found.meta.size, expected));
        }
        let (mut parts, mut bytes) = (found.into_stream(), 0);
        while let Some(part) = parts.next().await {
            let part = part.map_err(failed)?;
            bytes += part.len() as u64;
            if bytes > expected {
                break;
            }
            scratch =
                blocking(move || scratch.write_all(&part).map(|()| scratch).map_err(scratch_failed)).await?;
        }
        let (file, _, _, sha256) = scratch.finish();
        Ok(Fetched { file, bytes, sha256 })
    }

    /// Returns whether a file exists.
    ///
    /// # Errors
    /// `CorruptData` for a path that is not a regular file.
    pub(super) async fn exists(&self, relative: &str) -> Result<bool> {
        match &self.location {
            Location::Folder(folder) => {
                let path = folder.join(relative);
                blocking(move || match path.metadata() {
                    Ok(found) if found.is_file() => Ok(true),
                    Ok(_) => Err(not_regular(&path)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                    Err(error) => Err(io_failed(&path, error)),
                })
                .await
            }
            Location::Objects { store, root } => match store.head(&below(root, relative)?).await {
                Ok(_) => Ok(true),
                Err(object_store::Error::NotFound { .. }) => Ok(false),
                Err(error) => Err(failed(error)),
            },
        }
    }

    async fn small(&self, relative: &str) -> Result<Option<Vec<u8>>> {
        let too_large = || {
            corrupt("archive.manifest", "the manifest is larger than 64 KiB").with_context("file", relative)
        };
        match &self.location {
            Location::Folder(folder) => {
                let path = folder.join(relative);
                let found = blocking(move || {
                    let file = match open_regular(&path) {
                        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                        file => file?,
                    };
                    let mut bytes = Vec::new();
                    file.take(MAX_MANIFEST + 1).read_to_end(&mut bytes).map_err(|e| io_failed(&path, e))?;
                    Ok(Some(bytes))
                });
                match found.await? {
                    Some(bytes) if bytes.len() as u64 > MAX_MANIFEST => Err(too_large()),
                    found => Ok(found),
                }
            }
            Location::Objects { store, root } => match store.get(&below(root, relative)?).await {
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(failed(error)),
                Ok(found) if found.meta.size > MAX_MANIFEST => Err(too_large()),
                Ok(found) => Ok(Some(found.bytes().await.map_err(failed)?.to_vec())),
            },
        }
    }

    /// Stores a small file under its final name.
    async fn put_small(&self, relative: &str, json: &impl serde::Serialize) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(json).permanent("archive.manifest", "export")?;
        text.push(b'\n');
        let mut scratch = self.scratch()?;
        scratch.write_all(&text).map_err(scratch_failed)?;
        self.publish(scratch, relative).await.map(drop)
    }

    /// Returns the settings of the first export, if there are any.
    async fn stored_settings(&self) -> Result<Option<Settings>> {
        let json = self.small(SETTINGS).await?;
        json.map(|json| serde_json::from_slice(&json)).transpose().map_err(|e| {
            corrupt("archive.settings", "the settings of the archive cannot be read").with_source(e)
        })
    }

    /// Returns the period of one file. The default is a day, because a border of a month is also one of a day.
    pub(super) async fn period_length(&self) -> Result<PeriodLength> {
        Ok(self.stored_settings().await?.map_or(PeriodLength::Day, |settings| settings.period))
    }

    /// Stores the settings of the first export of these datasets, and compares the settings of later exports.
    pub(super) async fn settings(&self, wanted: &Settings, datasets: &[Dataset]) -> Result<()> {
        match self.stored_settings().await? {
            Some(found) => found.check(wanted),
            None => match self.any_file(datasets).await? {
                Some(file) => Err(Error::invalid(
                    "archive.settings",
                    "settings",
                    SETTINGS,
                    "must exist in an archive with data files; restore it, or export into another folder",
                )
                .with_context("file", file)),
                None => self.put_small(SETTINGS, wanted).await,
            },
        }
    }

    /// Returns the path of a data file or of a manifest, if the archive has one. A folder without a manifest belongs to the
    /// archive only if it has the name of one of these datasets or of a built-in dataset.
    ///
    /// Manifests are also looked for in folders that no dataset has, and beside the folders: the target can be the folder
    /// of an exchange or of a series in another archive.
    async fn any_file(&self, datasets: &[Dataset]) -> Result<Option<String>> {
        if let Some(manifest) = self.top_manifest().await? {
            return Ok(Some(manifest));
        }
        for name in self.folders().await?.iter().filter(|name| !name.starts_with('.')) {
            let is_known = Datasets::built_in().get(name).is_some()
                || datasets.iter().any(|dataset| dataset.name() == name.as_str());
            let mut entries = self.entries(name)?;
            loop {
                let Entry { folder, period, data } = match entries.try_next().await {
                    Ok(Some(entry)) => entry,
                    Ok(None) => break,
                    // A folder of another program that cannot be read, such as `lost+found`.
                    Err(error)
                        if !layout::is_dataset_name(name) && error.kind() != ErrorKind::Unavailable =>
                    {
                        break;
                    }
                    Err(error) => return Err(error),
                };
                let name = match data {
                    None => layout::manifest_name(period),
                    Some(_) if is_known => layout::data_name(period),
                    Some(_) => continue,
                };
                return Ok(Some(format!("{folder}/{name}")));
            }
        }
        Ok(None)
    }

    /// Returns the name of a manifest beside the folders at the top of the archive.
    async fn top_manifest(&self) -> Result<Option<String>> {
        let (store, root) = match &self.location {
            Location::Objects { store, root } => (store, root),
            Location::Folder(root) => {
                let root = root.clone();
                let found = blocking(move || read_folder(&root, "")).await?;
                let manifest = found.entries.iter().find(|entry| entry.data.is_none());
                return Ok(manifest.map(|entry| layout::manifest_name(entry.period)));
            }
        };
        let root = Some(root).filter(|root| !root.as_ref().is_empty());
        let found = store.list_with_delimiter(root).await.map_err(failed)?;
        let mut names = found.objects.iter().filter_map(|meta| meta.location.filename());
        Ok(names.find(|name| matches!(file_of(name), Some((_, false)))).map(str::to_owned))
    }

    pub(super) async fn put_manifest(&self, folder: &str, manifest: &Manifest) -> Result<()> {
        self.put_small(&format!("{folder}/{}", layout::manifest_name(manifest.period)), manifest).await
    }

    /// Returns the manifest at a path, if it exists.
    pub(super) async fn manifest(&self, relative: &str) -> Result<Option<Manifest>> {
        match self.small(relative).await? {
            Some(json) => Manifest::parse(&json).map(Some),
            None => Ok(None),
        }
    }

    /// Returns the content and the writer that a data file states in its metadata. None if the file states none.
    pub(super) async fn stated(&self, relative: &str, size: u64) -> Result<Option<(Content, String)>> {
        if size == 0 {
            return Ok(None);
        }
        let (store, root) = match &self.location {
            Location::Objects { store, root } => (store, root),
            Location::Folder(folder) => {
                let path = folder.join(relative);
                return blocking(move || {
                    let file = open_regular(&path)?;
                    let parsed = parquet_file::catch(|| Ok(parquet_file::metadata(&file)));
                    // Other results are those of a file that is not complete.
                    Ok(parsed.ok().and_then(|parsed| parquet_file::stated(&parsed.ok()?)))
                })
                .await;
            }
        };
        let path = below(root, relative)?;
        let mut wanted = FOOTER.min(size);
        loop {
            let bytes = store.get_range(&path, size - wanted..size).await.map_err(failed)?;
            match parquet_file::catch(|| Ok(parquet_file::metadata(&bytes))) {
                Ok(Ok(metadata)) => return Ok(parquet_file::stated(&metadata)),
                Ok(Err(ParquetError::NeedMoreData(more))) if more as u64 > wanted && more as u64 <= size => {
                    wanted = more as u64;
                }
                // The file is not a complete Parquet file.
                _ => return Ok(None),
            }
        }
    }

    /// Lists the files of a series.
    pub(super) async fn files(&self, folder: &str) -> Result<Files> {
        let mut files = Files::new();
        let mut entries = match &self.location {
            Location::Folder(root) => {
                let (root, folder) = (root.clone(), folder.to_owned());
                let found = blocking(move || read_folder(&root, &folder)).await?;
                stream::iter(found.entries.into_iter().map(Ok)).boxed()
            }
            Location::Objects { .. } => self.entries(folder)?,
        };
        while let Some(entry) = entries.try_next().await? {
            if entry.folder == folder {
                let (size, has_manifest) = files.entry(entry.period).or_default();
                *has_manifest |= entry.data.is_none();
                *size = size.or(entry.data);
            }
        }
        Ok(files)
    }

    /// Lists the data files and manifests below a folder, with paths relative to the archive. Ignores all other files.
    pub(super) fn entries(&self, folder: &str) -> Result<BoxStream<'_, Result<Entry>>> {
        let (store, root) = match &self.location {
            Location::Objects { store, root } => (store, root.clone()),
            Location::Folder(root) => {
                let folders = vec![folder.to_owned()];
                let listed = stream::try_unfold(folders, move |mut folders| async move {
                    let Some(folder) = folders.pop() else { return Ok::<_, Error>(None) };
                    let root = root.clone();
                    let found = blocking(move || read_folder(&root, &folder)).await?;
                    folders.extend(found.folders.into_iter().rev());
                    Ok(Some((stream::iter(found.entries.into_iter().map(Ok)), folders)))
                });
                return Ok(listed.try_flatten().boxed());
            }
        };
        let listed = store.list(Some(&below(&root, folder)?)).filter_map(move |meta| {
            let entry = match meta {
                Ok(meta) => {
                    let relative = meta.location.as_ref().strip_prefix(root.as_ref()).unwrap_or_default();
                    let relative = relative.trim_start_matches('/');
                    let (folder, name) = relative.rsplit_once('/').unwrap_or_default();
                    file_of(name).map(|(period, is_data)| {
                        let data = is_data.then_some(meta.size);
                        Ok(Entry { folder: folder.to_owned(), period, data })
                    })
                }
                Err(object_store::Error::NotFound { .. }) => None,
                Err(error) => Some(Err(failed(error))),
            };
            futures::future::ready(entry)
        });
        Ok(listed.boxed())
    }

    /// Lists the names of the folders at the top of the archive.
    pub(super) async fn folders(&self) -> Result<Vec<String>> {
        let (store, root) = match &self.location {
            Location::Objects { store, root } => (store, root),
            Location::Folder(root) => {
                let root = root.clone();
                let found = blocking(move || read_folder(&root, "")).await?;
                return Ok(found.folders.into_iter().filter(|name| !name.starts_with('_')).collect());
            }
        };
        let root = Some(root).filter(|root| !root.as_ref().is_empty());
        let found = store.list_with_delimiter(root).await.map_err(failed)?;
        let name = |path: &Path| path.filename().map(str::to_owned);
        Ok(found.common_prefixes.iter().filter_map(name).filter(|name| !name.starts_with('_')).collect())
    }
}

/// Returns the path of an object below a prefix.
fn below(root: &Path, relative: &str) -> Result<Path> {
    let joined = if root.as_ref().is_empty() { relative.to_owned() } else { format!("{root}/{relative}") };
    Path::parse(joined).map_err(|e| failed(e.into()))
}

/// The content of one folder, in the order of the names.
#[derive(Debug, Default)]
struct FolderContent {
    entries: Vec<Entry>,
    /// The paths of the folders in it, relative to the archive.
    folders: Vec<String>,
}

/// Reads one folder of an archive. Follows symbolic links, except broken links and links to a parent folder. Ignores
/// names that are not UTF-8, because no name of an archive is.
fn read_folder(root: &FilePath, folder: &str) -> Result<FolderContent> {
    let path = root.join(folder);
    let mut content = FolderContent::default();
    let found = match std::fs::read_dir(&path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(content);
        }
        found => found.map_err(|e| io_failed(&path, e))?,
    };
    let depth = if folder.is_empty() { 0 } else { folder.split('/').count() };
    for entry in found {
        let entry = entry.map_err(|e| io_failed(&path, e))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let (at, mut kind) = (entry.path(), entry.file_type().map_err(|e| io_failed(&path, e))?);
        let is_link = kind.is_symlink();
        if is_link {
            // A link can be broken, or a link to itself.
            let Ok(target) = at.metadata() else { continue };
            kind = target.file_type();
        }
        if kind.is_dir() && depth < MAX_DEPTH {
            let leads_back = || {
                at.canonicalize()
                    .is_ok_and(|target| path.canonicalize().is_ok_and(|at| at.starts_with(target)))
            };
            if !is_link || !leads_back() {
                content.folders.push(if folder.is_empty() { name } else { format!("{folder}/{name}") });
            }
        } else if let (true, Some((period, is_data))) = (kind.is_file(), file_of(&name)) {
            let size = match at.metadata() {
                // The file was removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                found => found.map_err(|e| io_failed(&at, e))?.len(),
            };
            content.entries.push(Entry { folder: folder.to_owned(), period, data: is_data.then_some(size) });
        }
    }
    content.folders.sort_unstable();
    content.entries.sort_unstable_by_key(|entry| (entry.period, entry.data.is_some()));
    Ok(content)
}

/// A file of an archive.
#[derive(Debug)]
pub(super) struct Entry {
    /// The folder of the series, relative to the archive.
    pub(super) folder: String,
    pub(super) period: Period,
    /// The size of a data file. None for a manifest.
    pub(super) data: Option<u64>,
}

/// Returns the period of the data file or of the manifest with this name, and whether it is a data file.
fn file_of(name: &str) -> Option<(Period, bool)> {
    let is_data = !name.starts_with('_');
    let period = if is_data {
        name.strip_suffix(".parquet")?
    } else {
        name.strip_prefix('_')?.strip_suffix(".json")?
    };
    Some((period.parse().ok()?, is_data))
}

/// Returns the size and the SHA-256 of a file of at most `at_most` bytes. Reads no further.
fn hash_file(mut file: &File, at_most: u64) -> io::Result<(u64, String)> {
    let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 256 * 1024]);
    while bytes < at_most {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        bytes += count as u64;
        hash.update(&buffer[..count]);
    }
    Ok((bytes, hex(&hash.finalize())))
}

/// Creates the folder of an archive if it is missing, and makes its name durable.
fn create_root(folder: &FilePath) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| io_failed(folder, e))?;
    if let Some(parent) = folder.parent() {
        // Some users may not open the parent.
        let _ = File::open(parent).and_then(|parent| parent.sync_all());
    }
    Ok(())
}

/// Creates the folders from `root` to `folder`, and makes their names durable. A folder that exists may come from an
/// export that was killed before it synced.
fn create_folders(root: &FilePath, folder: &FilePath) -> io::Result<()> {
    let Some(parent) = folder.parent().filter(|_| folder != root) else { return Ok(()) };
    create_folders(root, parent)?;
    match std::fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => File::open(parent)?.sync_all(),
    }
}
