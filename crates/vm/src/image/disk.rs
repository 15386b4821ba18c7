//! Disk files of machines: blank ones, thin copies of images, growing.
//!
//! A disk appears under its name only when it is whole and durable: it is made in a directory of
//! its own beside it and renamed. A thin copy's header names its image for people with qemu-img;
//! Muster never follows that name (the chain is known from the state and opened node by node).

use std::fs;
use std::fs::File;
use std::fs::Permissions;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use model::Bytes;
use model::DiskFormat;
use serde_json::json;

use super::cancel::Cancel;
use super::error::ImageError;
use super::inspect;
use super::inspect::VIRTUAL_SIZE_BYTES_MAX;
use super::pipeline::blocking;
use super::qemu_img::QemuImg;
use super::qemu_img::Run;
use super::qemu_img::SandboxUser;
use super::stage;
use super::stage::wrap;
use super::store;
use crate::wait::on_disk;

/// Smallest disk: 1 MiB. Less holds no partition table and file system.
const SIZE_BYTES_MIN: u64 = 1 << 20;
const SECTOR: u64 = 512;
/// Making or growing a file changes a few clusters; on a host where that takes longer, something
/// is wrong.
const STALL: Duration = Duration::from_secs(60);
/// qcow2 metadata that creating a disk may write: 64 TiB in clusters of 64 KiB needs 1 GiB of
/// refcount and L2 tables at the very most, none of it preallocated.
const METADATA_BYTES_MAX: u64 = 2 << 30;

/// Makes and grows disk files.
#[derive(Debug, Clone)]
pub struct DiskTool {
    qemu_img: QemuImg,
}

impl DiskTool {
    /// Uses `program` (qemu-img), as `user` where the daemon is root.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>, user: Option<SandboxUser>) -> Self {
        Self { qemu_img: QemuImg { program: program.into(), user, stall: STALL } }
    }

    /// Makes `dst`, a thin copy of the ready image `base` (qcow2) with `size` bytes.
    ///
    /// `size` must be at least the image's. An existing `dst` is replaced.
    ///
    /// # Errors
    /// `Shrink` for a size below the image's, `Header` for a base that is no sound image.
    pub async fn create_overlay(
        &self,
        base: &Path,
        dst: &Path,
        size: Bytes,
    ) -> Result<(), ImageError> {
        let wanted = checked_size(size)?;
        let of = base.to_owned();
        let header = blocking(base, move || {
            let base = fs::canonicalize(&of).map_err(wrap("opening", &of))?;
            let file = File::open(&base).map_err(wrap("opening", &base))?;
            Ok((inspect::inspect(&file, model::ImageFormat::Qcow2)?, base))
        });
        let (header, base) = header.await?;
        if wanted < header.virtual_size {
            return Err(ImageError::Shrink { current: header.virtual_size, wanted });
        }
        let options = ["-u".into(), "-F".into(), "qcow2".into(), "-b".into(), base.into()];
        self.create(dst, wanted, options.into()).await
    }

    /// Makes `dst`, a disk of `size` bytes that reads as zeros and takes next to no room.
    ///
    /// An existing `dst` is replaced.
    ///
    /// # Errors
    /// `BadSize`, `DiskFull` or host errors; nothing is left then.
    pub async fn create_blank(
        &self,
        dst: &Path,
        size: Bytes,
        format: DiskFormat,
    ) -> Result<(), ImageError> {
        let wanted = checked_size(size)?;
        match format {
            DiskFormat::Qcow2 => self.create(dst, wanted, Vec::new()).await,
            DiskFormat::Raw => {
                let place = Place::new(dst);
                let dir = place.dir.clone();
                blocking(&dir, move || {
                    place.prepare(None)?;
                    let made = File::create_new(&place.made).and_then(|file| file.set_len(wanted));
                    made.map_err(wrap("making", &place.made))?;
                    place.publish()
                })
                .await
            }
        }
    }

    /// Grows the disk at `path`, which no machine has open, to `size` bytes. Doing it again with
    /// the same size is fine.
    ///
    /// # Errors
    /// `Shrink` for a smaller size.
    pub async fn resize(
        &self,
        path: &Path,
        size: Bytes,
        format: DiskFormat,
    ) -> Result<(), ImageError> {
        let wanted = checked_size(size)?;
        let current = self.virtual_size(path, format).await?.get();
        if wanted <= current {
            let same = wanted == current;
            return if same { Ok(()) } else { Err(ImageError::Shrink { current, wanted }) };
        }
        if format == DiskFormat::Raw {
            let at = path.to_owned();
            return blocking(path, move || {
                let file = File::options().write(true).open(&at).map_err(wrap("opening", &at))?;
                file.set_len(wanted).map_err(wrap("growing", &at))?;
                file.sync_all().map_err(wrap("syncing", &at))
            })
            .await;
        }
        self.resize_qcow2(path, wanted).await
    }

    /// Size of the disk at `path` as a guest sees it.
    ///
    /// # Errors
    /// `Header` for a file that is not of `format`.
    pub async fn virtual_size(&self, path: &Path, format: DiskFormat) -> Result<Bytes, ImageError> {
        let at = path.to_owned();
        blocking(path, move || {
            let file = File::open(&at).map_err(wrap("opening", &at))?;
            match format {
                DiskFormat::Raw => Ok(file.metadata().map_err(wrap("looking at", &at))?.len()),
                DiskFormat::Qcow2 => Ok(inspect::qcow2_virtual_size(&file)?),
            }
        })
        .await
        .map(Bytes::new)
    }

    async fn create(
        &self,
        dst: &Path,
        size: u64,
        options: Vec<std::ffi::OsString>,
    ) -> Result<(), ImageError> {
        let place = Place::new(dst);
        place.prepare(self.user())?;
        let mut args: Vec<std::ffi::OsString> =
            ["create", "-q", "-f", "qcow2"].map(Into::into).into();
        args.extend(["-o", "compat=1.1,lazy_refcounts=off,cluster_size=65536"].map(Into::into));
        args.extend(options);
        args.extend([Place::MADE.into(), size.to_string().into()]);
        let run = Run {
            action: "make the disk",
            args,
            dir: &place.dir,
            writable: Some("."),
            file_bytes_max: METADATA_BYTES_MAX,
            also_accepted: &[],
        };
        let (_keep, mut cancel) = Cancel::channel();
        self.qemu_img.run(run, &mut cancel, |_| ()).await?;
        let dir = place.dir.clone();
        blocking(&dir, move || place.publish()).await
    }

    async fn resize_qcow2(&self, path: &Path, size: u64) -> Result<(), ImageError> {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str()))
        else {
            let odd = std::io::Error::from(std::io::ErrorKind::InvalidFilename);
            return Err(wrap("growing", path)(odd));
        };
        let handed = HandedOver::new(path, self.user())?;
        // Without its image: growing needs none, and the name in the header is not to be followed.
        let node = json!({
            "driver": "qcow2",
            "backing": null,
            "file": { "driver": "file", "filename": name },
        });
        let run = Run {
            action: "grow the disk",
            args: vec![
                "resize".into(),
                "-q".into(),
                format!("json:{node}").into(),
                size.to_string().into(),
            ],
            dir,
            writable: Some(name),
            file_bytes_max: u64::MAX,
            also_accepted: &[],
        };
        let (_keep, mut cancel) = Cancel::channel();
        let done = self.qemu_img.run(run, &mut cancel, |_| ()).await;
        handed.take_back()?;
        done?;
        let at = path.to_owned();
        blocking(path, move || {
            File::open(&at).and_then(|file| file.sync_all()).map_err(wrap("syncing", &at))
        })
        .await
    }

    /// Makes one disk of the thin copy at `path`, which no machine has open, and the ready image below it.
    /// It lies in a directory beside the copy and goes away with the answer; the copy stays as it is.
    ///
    /// # Errors
    /// `DiskFull`, or what the tool said; nothing is left then.
    pub async fn flatten(&self, path: &Path, base: &Path) -> Result<FlatDisk, ImageError> {
        let place = Place::new(path);
        on_disk(|| place.prepare(self.user()))?;
        let (copy, image) = (place.dir.join("copy"), place.dir.join("image"));
        let (from, below, dir) = (path.to_owned(), base.to_owned(), place.dir.clone());
        let user = self.user();
        let laid_out = blocking(path, move || {
            let taken =
                |of: &Path| super::space::allocated_bytes(of).map_err(wrap("looking at", of));
            let below = fs::canonicalize(&below).map_err(wrap("opening", &below))?;
            // The image twice: its copy, and what is made of it.
            let needed = taken(&from)?.saturating_add(taken(&below)?.saturating_mul(2));
            super::space::require(&dir, needed)?;
            // In the one directory that the tool sees. Machines have the image itself open, and it is
            // nobody's to read but theirs.
            fs::hard_link(&from, &copy).map_err(wrap("linking", &from))?;
            fs::copy(&below, &image).map_err(wrap("copying", &below))?;
            if let Some(user) = user {
                std::os::unix::fs::chown(&image, Some(user.uid), Some(user.gid))
                    .map_err(wrap("handing over", &image))?;
            }
            Ok(())
        });
        laid_out.await?;
        // For the time of the run: the one file has both names.
        let handed = HandedOver::new(path, self.user())?;
        let file = |name: &str| json!({ "driver": "file", "filename": name });
        let node = json!({
            "driver": "qcow2",
            "file": file("copy"),
            "backing": { "driver": "qcow2", "file": file("image"), "backing": null },
        });
        let mut args: Vec<std::ffi::OsString> =
            ["convert", "-p", "-O", "qcow2"].map(Into::into).into();
        args.extend(["-o", "compat=1.1,lazy_refcounts=off,cluster_size=65536"].map(Into::into));
        args.extend([format!("json:{node}").into(), Place::MADE.into()]);
        let run = Run {
            action: "make one disk of a thin copy and its image",
            args,
            dir: &place.dir,
            writable: Some("."),
            file_bytes_max: u64::MAX,
            also_accepted: &[],
        };
        let (_keep, mut cancel) = Cancel::channel();
        let done = self.qemu_img.run(run, &mut cancel, |_| ()).await;
        handed.take_back()?;
        done?;
        let made = place.made.clone();
        blocking(&place.dir, move || {
            let file = store::open_made(&made)?;
            store::seal(&file, &made, 0o600)
        })
        .await?;
        Ok(FlatDisk { place })
    }

    fn user(&self) -> Option<SandboxUser> {
        self.qemu_img.user.filter(|_| nix::unistd::Uid::effective().is_root())
    }
}

/// A disk that was made of a thin copy; it goes away with this.
#[derive(Debug)]
pub struct FlatDisk {
    place: Place,
}

impl FlatDisk {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.place.made
    }
}

fn checked_size(size: Bytes) -> Result<u64, ImageError> {
    let size = size.get();
    let fits =
        (SIZE_BYTES_MIN..=VIRTUAL_SIZE_BYTES_MAX).contains(&size) && size.is_multiple_of(SECTOR);
    if fits { Ok(size) } else { Err(ImageError::BadSize { size }) }
}

/// A directory beside the destination in which a file is made; removed on drop.
#[derive(Debug)]
struct Place {
    dst: PathBuf,
    dir: PathBuf,
    made: PathBuf,
}

impl Place {
    const MADE: &str = "disk";

    fn new(dst: &Path) -> Self {
        let mut name = dst.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let dir = dst.with_file_name(name);
        Self { dst: dst.to_owned(), made: dir.join(Self::MADE), dir }
    }

    /// Makes the directory; what a crash left there is removed.
    fn prepare(&self, user: Option<SandboxUser>) -> Result<(), ImageError> {
        stage::remove(&self.dir)?;
        fs::create_dir(&self.dir).map_err(wrap("making the directory", &self.dir))?;
        fs::set_permissions(&self.dir, Permissions::from_mode(0o700))
            .map_err(wrap("setting the mode of", &self.dir))?;
        if let Some(user) = user {
            std::os::unix::fs::chown(&self.dir, Some(user.uid), Some(user.gid))
                .map_err(wrap("handing over", &self.dir))?;
        }
        Ok(())
    }

    fn publish(&self) -> Result<(), ImageError> {
        let file = store::open_made(&self.made)?;
        store::seal(&file, &self.made, 0o600)?;
        fs::rename(&self.made, &self.dst).map_err(wrap("publishing", &self.dst))?;
        store::sync_dir(self.dst.parent().unwrap_or(Path::new(".")))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = on_disk(|| stage::remove(&self.dir)) {
            tracing::warn!(dir = %self.dir.display(), %error, "directory was not removed");
        }
    }
}

/// A disk that belongs to the sandbox's user for a moment.
struct HandedOver {
    path: PathBuf,
    before: Option<(u32, u32)>,
}

impl HandedOver {
    fn new(path: &Path, user: Option<SandboxUser>) -> Result<Self, ImageError> {
        on_disk(|| {
            let mut handed = Self { path: path.to_owned(), before: None };
            if let Some(user) = user {
                let metadata = fs::symlink_metadata(path).map_err(wrap("looking at", path))?;
                handed.before = Some((metadata.uid(), metadata.gid()));
                std::os::unix::fs::lchown(path, Some(user.uid), Some(user.gid))
                    .map_err(wrap("handing over", path))?;
            }
            Ok(handed)
        })
    }

    fn take_back(mut self) -> Result<(), ImageError> {
        self.restore().map_err(wrap("taking back", &self.path))
    }

    fn restore(&mut self) -> std::io::Result<()> {
        match self.before.take() {
            Some((uid, gid)) => std::os::unix::fs::lchown(&self.path, Some(uid), Some(gid)),
            None => Ok(()),
        }
    }
}

impl Drop for HandedOver {
    fn drop(&mut self) {
        // Only when the future was dropped half-way; the child dies with it.
        if let Err(error) = on_disk(|| self.restore()) {
            tracing::warn!(path = %self.path.display(), %error, "disk was not taken back");
        }
    }
}
