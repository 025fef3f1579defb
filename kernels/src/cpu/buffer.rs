//! Zeroed memory on cache-line bounds: a vector load never straddles two lines.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use bytemuck::Pod;

const LINE_BYTES: usize = 64;

/// Alignment that the system's zeroing allocation gives; asking for more makes it write the zeros itself.
const SYSTEM_ALIGN: usize = 16;

/// A fixed number of elements, 64-byte aligned. Fresh pages come from the system as they are touched, so a large
/// buffer costs no memory before it is used.
pub(crate) struct Aligned<T: Pod> {
    /// First element, on a line's bound inside the allocation.
    pointer: NonNull<T>,
    len: usize,
    allocation: NonNull<u8>,
    layout: Layout,
    owns: PhantomData<T>,
}

// SAFETY: the buffer owns plain data and hands out access by the borrow rules alone.
unsafe impl<T: Pod + Send> Send for Aligned<T> {}
// SAFETY: as above.
unsafe impl<T: Pod + Sync> Sync for Aligned<T> {}

impl<T: Pod> Aligned<T> {
    /// `len` zeros.
    pub(crate) fn zeroed(len: usize) -> Self {
        let bytes = len * size_of::<T>() + LINE_BYTES;
        let Ok(layout) = Layout::from_size_align(bytes, SYSTEM_ALIGN.max(align_of::<T>())) else {
            handle_alloc_error(Layout::new::<T>());
        };
        // SAFETY: the layout has at least one line.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(allocation) = NonNull::new(raw) else { handle_alloc_error(layout) };
        // SAFETY: less than the line by which the allocation is longer than the elements.
        let pointer = unsafe { allocation.add(allocation.align_offset(LINE_BYTES)) }.cast();
        Self { pointer, len, allocation, layout, owns: PhantomData }
    }

    /// Makes room for at least `len` elements; what they hold afterwards is unspecified (but initialised).
    pub(crate) fn grow(&mut self, len: usize) {
        if self.len < len {
            *self = Self::zeroed(len + len / 4);
        }
    }
}

impl<T: Pod> Default for Aligned<T> {
    fn default() -> Self {
        Self::zeroed(0)
    }
}

impl<T: Pod> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` elements were allocated, and zeros are valid values of a `Pod`.
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), self.len) }
    }
}

impl<T: Pod> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.len) }
    }
}

impl<T: Pod> Drop for Aligned<T> {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout.
        unsafe { dealloc(self.allocation.as_ptr(), self.layout) }
    }
}

/// A pointer that parallel tasks share; each writes only the part that is its own.
#[derive(Clone, Copy)]
pub(crate) struct Shared(pub(crate) *mut f32);

// SAFETY: the users of a `Shared` write disjoint parts (each says why), within the life of the buffer.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// The pointer (a method, so that closures capture the whole value).
    pub(crate) fn get(self) -> *mut f32 {
        self.0
    }
}
