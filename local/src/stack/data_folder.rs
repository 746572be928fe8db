//! The lock of the data folder: two stacks must not write to the same files.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;

use anyhow::{Context, anyhow, bail};

/// Creates the folder and locks it for this process, until the returned file is dropped. The file names the
/// owner, so that the error message of another process can.
pub(super) fn lock(folder: &Path, front_url: &str) -> anyhow::Result<File> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot create the data folder {}", folder.display()))?;
    let path = folder.join("lock");
    let mut file = File::options()
        .create(true)
        .read(true)
        .write(true)
        .truncate(false)
        .open(&path)
        .map_err(|error| anyhow!("cannot open {}: {error}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            let _ = file.read_to_string(&mut owner);
            bail!(
                "the data folder {} is in use by another running stack ({}): stop that one, or choose another \
                 folder with --data DIR or --memory",
                folder.display(),
                owner.trim()
            );
        }
        Err(TryLockError::Error(error)) => bail!("cannot lock {}: {error}", path.display()),
    }
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "process {}, {front_url}", std::process::id())?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locked_data_folder_is_refused_with_the_address_of_its_stack() {
        let folder = std::env::temp_dir().join(format!("tallyhook-test-{}", uuid::Uuid::new_v4()));
        let first = lock(&folder, "http://127.0.0.1:9000").unwrap();
        let error = lock(&folder, "http://127.0.0.1:1").unwrap_err().to_string();
        assert!(error.contains("http://127.0.0.1:9000") && error.contains("--data"), "{error}");
        drop(first);
        drop(lock(&folder, "http://127.0.0.1:1").unwrap());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
