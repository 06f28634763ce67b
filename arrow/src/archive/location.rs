//! The location of an archive: a folder or a prefix of an object store.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use futures::stream::{BoxStream, StreamExt as _, TryStreamExt as _};
use object_store::buffered::BufWriter;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaDataReader;
use qi_core::{Error, ErrorKind, Result, ResultExt as _};
use sha2::{Digest as _, Sha256};

use super::manifest::Settings;
use super::scratch::{PREFIX, Scratch};
use super::{Manifest, Period, blocking, layout};
use crate::content::hex;
use crate::error::corrupt;
use crate::{Content, parquet_file};

/// The largest manifest in bytes. A manifest has less than 2 KiB.
const MAX_MANIFEST: u64 = 64 * 1024;
/// The size of one part of an upload.
const PART: usize = 8 * 1024 * 1024;
/// The number of parts of one file that are uploaded concurrently.
const PARTS_IN_FLIGHT: usize = 4;
/// The bytes at the end of a Parquet file that are read to find its metadata.
const FOOTER: u64 = 64 * 1024;

const SETTINGS: &str = "_archive.json";
const LOCK: &str = "_lock";
const PARTIAL: &str = "_partial";

/// The location of an archive: a folder, or a prefix of an object store.
#[derive(Debug, Clone)]
pub struct Archive {
    store: Arc<dyn ObjectStore>,
    root: Path,
    /// The folder, if the archive is in the local file system.
    folder: Option<PathBuf>,
}

fn failed(error: object_store::Error) -> Error {
    use object_store::Error as E;
    let kind = match &error {
        E::NotFound { .. } => ErrorKind::NotFound,
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => ErrorKind::Unauthorized,
        E::InvalidPath { .. } | E::UnknownConfigurationKey { .. } => ErrorKind::Config,
        E::NotSupported { .. } | E::NotImplemented { .. } => ErrorKind::Unsupported,
        E::AlreadyExists { .. } | E::Precondition { .. } => ErrorKind::Conflict,
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

fn bad_address(message: &str) -> Error {
    Error::new(ErrorKind::Config, "archive.address", "open").with_message(message)
}

/// A parsed address.
enum Address {
    Folder(PathBuf),
    #[cfg_attr(not(feature = "cloud"), allow(dead_code, reason = "object stores need the feature"))]
    Url(url::Url),
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

    /// Opens an archive at an address as [`Archive::open`] does, and creates the folder if it is missing.
    ///
    /// # Errors
    /// `Config` for an address that is not known or not enabled; `Unauthorized` or `Unavailable` if the folder cannot
    /// be created.
    pub fn create(address: &str) -> Result<Self> {
        if let Address::Folder(path) = parse_address(address)? {
            std::fs::create_dir_all(&path).map_err(|e| io_failed(&path, e))?;
            let parent = path.canonicalize().ok().and_then(|path| path.parent().map(FilePath::to_owned));
            if let Some(parent) = parent {
                // The name of the folder becomes durable. Some users may not open the parent.
                let _ = File::open(parent).and_then(|parent| parent.sync_all());
            }
        }
        Self::open(address)
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
        let store = LocalFileSystem::new_with_prefix(&folder).map_err(failed)?;
        Ok(Self { store: Arc::new(store), root: Path::default(), folder: Some(folder) })
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
            .map_err(|e| bad_address("the address is not that of a known object store").with_source(e))?;
        Ok(Self { store: store.into(), root, folder: None })
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
        Ok(Self { store, root, folder: None })
    }

    fn path(&self, relative: &str) -> Result<Path> {
        let joined = if self.root.as_ref().is_empty() {
            relative.to_owned()
        } else {
            format!("{}/{relative}", self.root)
        };
        Path::parse(joined).map_err(|e| failed(e.into()))
    }

    /// Locks the folder of the archive and removes the incomplete files of earlier exports. The lock ends with the
    /// returned file. An object store has neither.
    pub(super) async fn lock(&self) -> Result<Option<File>> {
        let Some(folder) = self.folder.clone() else { return Ok(None) };
        blocking(move || {
            let partial = folder.join(PARTIAL);
            std::fs::create_dir_all(&partial).map_err(|e| io_failed(&partial, e))?;
            if partial.symlink_metadata().is_ok_and(|found| found.is_symlink()) {
                return Err(Error::new(ErrorKind::Config, "archive.partial", "export")
                    .with_message("the folder of incomplete files must not be a symbolic link")
                    .with_context("folder", partial.display()));
            }
            let path = folder.join(LOCK);
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
        let partial = self.folder.as_ref().map(|folder| folder.join(PARTIAL));
        let at = partial.clone().unwrap_or_else(std::env::temp_dir);
        Scratch::new(partial.as_deref()).map_err(|e| io_failed(&at, e))
    }

    /// Gives a file its final name. A file of that name is replaced atomically. The file is durable afterwards, and it
    /// was read back. Returns its size and its SHA-256.
    pub(super) async fn publish(&self, scratch: Scratch, relative: &str) -> Result<(u64, String)> {
        let (mut file, temporary, bytes, sha256) = scratch.finish();
        if let (Some(temporary), Some(folder)) = (temporary, &self.folder) {
            let (folder, path) = (folder.clone(), folder.join(relative));
            blocking(move || {
                let failed = |e| io_failed(&path, e);
                let parent = path.parent().unwrap_or(&folder);
                file.sync_all().map_err(failed)?;
                create_folders(&folder, parent).map_err(failed)?;
                temporary.persist(&path).map_err(|e| io_failed(&path, e.error))?;
                File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed)
            })
            .await?;
        } else {
            let mut upload = BufWriter::with_capacity(self.store.clone(), self.path(relative)?, PART)
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
        if let Some(folder) = &self.folder {
            let path = folder.join(relative);
            return blocking(move || {
                let file = File::open(&path).map_err(|e| io_failed(&path, e))?;
                hash_file(&file, u64::MAX).map_err(|e| io_failed(&path, e))
            })
            .await;
        }
        let (mut hash, mut bytes) = (Sha256::new(), 0);
        let mut parts = self.store.get(&self.path(relative)?).await.map_err(failed)?.into_stream();
        while let Some(part) = parts.next().await {
            let part = part.map_err(failed)?;
            bytes += part.len() as u64;
            hash.update(&part);
        }
        Ok((bytes, hex(&hash.finalize())))
    }

    /// Opens a data file. A file of an object store is copied to an unnamed temporary file. Returns the file, its size
    /// and its SHA-256. Reads at most one part more than `at_most` bytes.
    pub(super) async fn fetch(&self, relative: &str, at_most: u64) -> Result<(File, u64, String)> {
        if let Some(folder) = &self.folder {
            let path = folder.join(relative);
            return blocking(move || {
                let file = File::open(&path).map_err(|e| io_failed(&path, e))?;
                let (bytes, sha256) =
                    hash_file(&file, at_most.saturating_add(1)).map_err(|e| io_failed(&path, e))?;
                Ok((file, bytes, sha256))
            })
            .await;
        }
        let mut scratch = Scratch::new(None).map_err(scratch_failed)?;
        let mut parts = self.store.get(&self.path(relative)?).await.map_err(failed)?.into_stream();
        let mut bytes = 0;
        while let Some(part) = parts.next().await {
            let part = part.map_err(failed)?;
            bytes += part.len() as u64;
            if bytes > at_most {
                break;
            }
            scratch =
                blocking(move || scratch.write_all(&part).map(|()| scratch).map_err(scratch_failed)).await?;
        }
        let (file, _, _, sha256) = scratch.finish();
        Ok((file, bytes, sha256))
    }

    /// Returns whether a file exists.
    pub(super) async fn exists(&self, relative: &str) -> Result<bool> {
        match self.store.head(&self.path(relative)?).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    async fn small(&self, relative: &str) -> Result<Option<Vec<u8>>> {
        match self.store.get(&self.path(relative)?).await {
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed(error)),
            Ok(found) if found.meta.size > MAX_MANIFEST => {
                Err(corrupt("archive.manifest", "the manifest is larger than 64 KiB")
                    .with_context("file", relative))
            }
            Ok(found) => Ok(Some(found.bytes().await.map_err(failed)?.to_vec())),
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

    /// Stores the settings of the first export, and compares the settings of later exports.
    pub(super) async fn settings(&self, wanted: &Settings) -> Result<()> {
        match self.small(SETTINGS).await? {
            Some(json) => {
                let found: Settings = serde_json::from_slice(&json).map_err(|e| {
                    corrupt("archive.settings", "the settings of the archive cannot be read").with_source(e)
                })?;
                found.check(wanted)
            }
            None => self.put_small(SETTINGS, wanted).await,
        }
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
        let path = self.path(relative)?;
        if size == 0 {
            return Ok(None);
        }
        let mut wanted = FOOTER.min(size);
        loop {
            let bytes = self.store.get_range(&path, size - wanted..size).await.map_err(failed)?;
            let parsed = parquet_file::catch(|| Ok(ParquetMetaDataReader::new().parse_and_finish(&bytes)));
            match parsed {
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
        let mut entries = self.entries(folder)?;
        while let Some(entry) = entries.try_next().await? {
            if entry.folder == folder {
                let (size, has_manifest) = files.entry(entry.period).or_default();
                *has_manifest |= entry.data.is_none();
                *size = size.or(entry.data);
            }
        }
        Ok(files)
    }

    /// Lists the data files and manifests below a folder, with paths relative to the archive.
    pub(super) fn entries(&self, folder: &str) -> Result<BoxStream<'_, Result<Entry>>> {
        let root = self.root.clone();
        let listed = self.store.list(Some(&self.path(folder)?)).filter_map(move |meta| {
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
        let root = Some(&self.root).filter(|root| !root.as_ref().is_empty());
        let found = self.store.list_with_delimiter(root).await.map_err(failed)?;
        let name = |path: &Path| path.filename().map(str::to_owned);
        Ok(found.common_prefixes.iter().filter_map(name).filter(|name| !name.starts_with('_')).collect())
    }
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
