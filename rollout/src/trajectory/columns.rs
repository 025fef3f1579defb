//! Columns in one line each: a name, and an array from an iterator.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, Float32Array, Float64Array, Int32Array, Int64Array, ListArray,
    RecordBatch, StringArray, StructArray, TimestampMicrosecondArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{Field, Fields, Schema};

use crate::RolloutError;

/// A table under construction.
#[derive(Default)]
pub(super) struct Columns {
    fields: Vec<Field>,
    arrays: Vec<ArrayRef>,
}

impl Columns {
    fn push(mut self, name: &str, nullable: bool, array: ArrayRef) -> Self {
        self.fields.push(Field::new(name, array.data_type().clone(), nullable));
        self.arrays.push(array);
        self
    }

    pub fn text<S: AsRef<str>>(self, name: &str, values: impl IntoIterator<Item = S>) -> Self {
        self.push(name, false, Arc::new(StringArray::from_iter_values(values)))
    }

    pub fn maybe_text<S: AsRef<str>>(self, name: &str, values: impl IntoIterator<Item = Option<S>>) -> Self {
        self.push(name, true, Arc::new(values.into_iter().collect::<StringArray>()))
    }

    pub fn int(self, name: &str, values: impl IntoIterator<Item = u32>) -> Self {
        self.push(name, false, Arc::new(Int32Array::from_iter_values(values.into_iter().map(|v| v as i32))))
    }

    pub fn maybe_int(self, name: &str, values: impl IntoIterator<Item = Option<u32>>) -> Self {
        let array: Int32Array = values.into_iter().map(|v| v.map(|v| v as i32)).collect();
        self.push(name, true, Arc::new(array))
    }

    pub fn long(self, name: &str, values: impl IntoIterator<Item = i64>) -> Self {
        self.push(name, false, Arc::new(Int64Array::from_iter_values(values)))
    }

    pub fn float(self, name: &str, values: impl IntoIterator<Item = f32>) -> Self {
        self.push(name, false, Arc::new(Float32Array::from_iter_values(values)))
    }

    pub fn double(self, name: &str, values: impl IntoIterator<Item = f64>) -> Self {
        self.push(name, false, Arc::new(Float64Array::from_iter_values(values)))
    }

    pub fn maybe_double(self, name: &str, values: impl IntoIterator<Item = Option<f64>>) -> Self {
        self.push(name, true, Arc::new(values.into_iter().collect::<Float64Array>()))
    }

    pub fn flag(self, name: &str, values: impl IntoIterator<Item = bool>) -> Self {
        self.push(name, false, Arc::new(BooleanArray::from(values.into_iter().collect::<Vec<_>>())))
    }

    pub fn maybe_flag(self, name: &str, values: impl IntoIterator<Item = Option<bool>>) -> Self {
        self.push(name, true, Arc::new(values.into_iter().collect::<BooleanArray>()))
    }

    /// Microseconds since 1970, UTC.
    pub fn time(self, name: &str, values: impl IntoIterator<Item = i64>) -> Self {
        let array = TimestampMicrosecondArray::from_iter_values(values).with_timezone("UTC");
        self.push(name, false, Arc::new(array))
    }

    /// A list a row: `lengths` cut `elements`.
    pub fn list(self, name: &str, lengths: impl IntoIterator<Item = usize>, elements: ArrayRef) -> Self {
        self.push(name, false, Arc::new(list(lengths, elements, None)))
    }

    /// A list a row, or none.
    pub fn maybe_list(self, name: &str, lengths: &[Option<usize>], elements: ArrayRef) -> Self {
        let valid: NullBuffer = lengths.iter().map(Option::is_some).collect();
        self.push(name, true, Arc::new(list(lengths.iter().map(|l| l.unwrap_or(0)), elements, Some(valid))))
    }

    pub fn batch(self, metadata: &[(String, String)]) -> Result<RecordBatch, RolloutError> {
        let schema =
            Schema::new_with_metadata(self.fields, metadata.iter().cloned().collect::<HashMap<_, _>>());
        RecordBatch::try_new(Arc::new(schema), self.arrays).map_err(|e| RolloutError::Log(e.to_string()))
    }
}

/// A list a row: `lengths` cut `elements`; rows that are not `valid` are null.
pub(super) fn list(
    lengths: impl IntoIterator<Item = usize>,
    elements: ArrayRef,
    valid: Option<NullBuffer>,
) -> ListArray {
    let field = Arc::new(Field::new("element", elements.data_type().clone(), false));
    ListArray::new(field, OffsetBuffer::from_lengths(lengths), elements, valid)
}

/// Elements of a list of structures.
pub(super) fn structure(columns: Vec<(&str, bool, ArrayRef)>) -> ArrayRef {
    let fields: Fields = columns
        .iter()
        .map(|(name, nullable, array)| Field::new(*name, array.data_type().clone(), *nullable))
        .collect();
    Arc::new(StructArray::new(fields, columns.into_iter().map(|c| c.2).collect(), None))
}
