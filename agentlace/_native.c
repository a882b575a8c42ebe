/* The inner loops of a small call, in C: a tree into its frame, a frame into its tree, and one
 * exchange with the broker; and that of a large batch, copying rows.
 *
 * Each function does what a method in Python does as well, for the usual case only: whatever is
 * unusual makes it return None, and then the method goes on. So nothing depends on this module.
 * agentlace/native.py says when it is used; the methods are in agentlace/codec/stamped.py and
 * unstamped.py, in agentlace/transport/link.py and spin.py, and in agentlace/data/ring.py.
 *
 * Plans are nested tuples, as agentlace/codec/stamped.py and unstamped.py describe them. They are
 * made in this process, but what they describe may have come from the network: every place is
 * checked against the memory that it is in.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "frames are little-endian"
#endif

/* As in agentlace/codec/stamped.py. */
enum { NUMBER, SCALAR, ARRAY, DICT, ITEMS, CONSTANT };

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0 /* Python ignores SIGPIPE anyway */
#endif

#define VERSION 2 /* as in agentlace/native.py */
#define CRC_AT 4
#define CRC_END 8
#define PREFIX_BYTES 20

static PyObject *crc32_of; /* zlib.crc32: what both ends of a connection agree on */
static PyObject *ndarray;
static PyObject *name_tobytes, *name_dtype;

/* ---- what both directions need ---------------------------------------------------------- */

static int has_arguments(Py_ssize_t n, Py_ssize_t wanted) {
    if (n != wanted) PyErr_Format(PyExc_TypeError, "%zd arguments, not %zd", n, wanted);
    return n == wanted;
}

/* The next of struct's codes in a format: the code, and how many bytes it takes; 0 at the end. */
static char next_code(const char **format, Py_ssize_t *nbytes) {
    Py_ssize_t count = 0;
    while (**format >= '0' && **format <= '9') count = 10 * count + (*(*format)++ - '0');
    char code = **format;
    if (!code) return 0;
    (*format)++;
    *nbytes = code == 's' ? count : code == '?' ? 1 : 8;
    return code;
}

/* The checksum of memory; -1 and an exception on failure. */
static int checksum(const char *memory, Py_ssize_t nbytes, uint32_t *crc) {
    PyObject *view = PyMemoryView_FromMemory((char *)memory, nbytes, PyBUF_READ);
    if (!view) return -1;
    PyObject *value = PyObject_CallFunctionObjArgs(crc32_of, view, NULL);
    Py_DECREF(view);
    if (!value) return -1;
    *crc = (uint32_t)PyLong_AsUnsignedLong(value);
    Py_DECREF(value);
    return PyErr_Occurred() ? -1 : 0;
}

/* ---- a tree into its frame ------------------------------------------------------------- */

typedef struct {
    char *memory;
    Py_ssize_t nbytes;
    char *number; /* where the next number goes */
    char *end;    /* and where no more do */
} Out;

/* All of these return 1, 0 if the value is something else than planned, -1 with an exception. */
static int take(PyObject *plan, PyObject *value, Out *out);

static int put(Out *out, const void *bytes, Py_ssize_t nbytes) {
    if (nbytes > out->end - out->number) return 0;
    memcpy(out->number, bytes, nbytes);
    out->number += nbytes;
    return 1;
}

/* An error of Python's that only says that a value is something else. */
static int is_other(void) {
    if (!PyErr_ExceptionMatches(PyExc_Exception)) return -1;
    PyErr_Clear();
    return 0;
}

static int put_bytes_of(PyObject *value, char *place, Py_ssize_t nbytes) {
    PyObject *bytes = PyObject_CallMethodObjArgs(value, name_tobytes, NULL);
    if (!bytes) return is_other();
    char *from;
    Py_ssize_t size;
    int fits = !PyBytes_AsStringAndSize(bytes, &from, &size) && size == nbytes;
    if (fits) memcpy(place, from, nbytes);
    Py_DECREF(bytes);
    return fits ? 1 : PyErr_Occurred() ? is_other() : 0;
}

static int take_number(PyObject *value, Out *out) {
    if (PyBool_Check(value)) {
        char flag = value == Py_True;
        return put(out, &flag, 1);
    }
    if (PyFloat_Check(value)) {
        double number = PyFloat_AsDouble(value);
        return put(out, &number, 8);
    }
    long long number = PyLong_AsLongLong(value);
    if (number == -1 && PyErr_Occurred()) return is_other();
    return put(out, &number, 8);
}

static int take_scalar(PyObject *plan, PyObject *value, Out *out) {
    Py_ssize_t nbytes = PyLong_AsSsize_t(PyTuple_GetItem(plan, 2));
    if (nbytes < 0 || nbytes > out->end - out->number) return 0;
    int taken = put_bytes_of(value, out->number, nbytes);
    if (taken > 0) out->number += nbytes;
    return taken;
}

static int is_dtype(PyObject *value, PyObject *wanted) {
    PyObject *dtype = PyObject_GetAttr(value, name_dtype);
    if (!dtype) return is_other();
    int same = dtype == wanted ? 1 : PyObject_RichCompareBool(dtype, wanted, Py_EQ);
    Py_DECREF(dtype);
    return same < 0 ? is_other() : same;
}

static int is_shape(const Py_buffer *view, PyObject *shape) {
    if (view->ndim != PyTuple_Size(shape)) return 0;
    for (int i = 0; i < view->ndim; i++)
        if (view->shape[i] != PyLong_AsSsize_t(PyTuple_GetItem(shape, i))) return 0;
    return 1;
}

/* (ARRAY, ndarray, dtype, shape, offset, nbytes, …) */
static int take_array(PyObject *plan, PyObject *value, Out *out) {
    int same = is_dtype(value, PyTuple_GetItem(plan, 2));
    if (same <= 0) return same;
    Py_ssize_t offset = PyLong_AsSsize_t(PyTuple_GetItem(plan, 4));
    Py_ssize_t nbytes = PyLong_AsSsize_t(PyTuple_GetItem(plan, 5));
    if (offset < 0 || nbytes < 0 || nbytes > out->nbytes || offset > out->nbytes - nbytes) return 0;
    Py_buffer view;
    if (PyObject_GetBuffer(value, &view, PyBUF_STRIDES)) return is_other();
    int taken = is_shape(&view, PyTuple_GetItem(plan, 3)) && view.len == nbytes;
    int is_whole = taken && PyBuffer_IsContiguous(&view, 'C');
    if (is_whole) memcpy(out->memory + offset, view.buf, nbytes);
    PyBuffer_Release(&view);
    return taken && !is_whole ? put_bytes_of(value, out->memory + offset, nbytes) : taken;
}

/* (DICT, dict, ((key, plan), …)) */
static int take_dict(PyObject *plan, PyObject *value, Out *out) {
    PyObject *pairs = PyTuple_GetItem(plan, 2), *key, *item;
    Py_ssize_t n = PyTuple_Size(pairs), at = 0;
    if (PyDict_Size(value) != n) return 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        if (!PyDict_Next(value, &at, &key, &item)) return 0;
        PyObject *pair = PyTuple_GetItem(pairs, i), *wanted = PyTuple_GetItem(pair, 0);
        if (key != wanted) {
            int same = PyUnicode_CheckExact(key) ? PyUnicode_Compare(key, wanted) == 0 : 0;
            if (!same) return PyErr_Occurred() ? is_other() : 0;
        }
        Py_INCREF(item);
        int taken = take(PyTuple_GetItem(pair, 1), item, out);
        Py_DECREF(item);
        if (taken <= 0) return taken;
    }
    return 1;
}

/* (ITEMS, list or tuple, (plan, …)) */
static int take_items(PyObject *plan, PyObject *value, Out *out) {
    PyObject *plans = PyTuple_GetItem(plan, 2);
    Py_ssize_t n = PyTuple_Size(plans);
    if (PySequence_Size(value) != n) return 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *item = PySequence_GetItem(value, i);
        if (!item) return is_other();
        int taken = take(PyTuple_GetItem(plans, i), item, out);
        Py_DECREF(item);
        if (taken <= 0) return taken;
    }
    return 1;
}

static int are_texts(PyObject *set) {
    PyObject *items = PyObject_GetIter(set), *item;
    if (!items) return is_other();
    int all = 1;
    while (all && (item = PyIter_Next(items))) {
        all = PyUnicode_CheckExact(item);
        Py_DECREF(item);
    }
    Py_DECREF(items);
    return PyErr_Occurred() ? is_other() : all;
}

/* (CONSTANT, type, value) */
static int take_constant(PyObject *plan, PyObject *value) {
    PyObject *wanted = PyTuple_GetItem(plan, 2);
    if (value == wanted) return 1;
    int same = PyObject_RichCompareBool(value, wanted, Py_EQ);
    if (same < 0) return is_other();
    return same && PyAnySet_Check(value) ? are_texts(value) : same;
}

static int take(PyObject *plan, PyObject *value, Out *out) {
    if (PyTuple_GetItem(plan, 1) != (PyObject *)Py_TYPE(value)) return 0;
    switch (PyLong_AsLong(PyTuple_GetItem(plan, 0))) {
    case NUMBER: return take_number(value, out);
    case SCALAR: return take_scalar(plan, value, out);
    case ARRAY: return take_array(plan, value, out);
    case DICT: return take_dict(plan, value, out);
    case ITEMS: return take_items(plan, value, out);
    case CONSTANT: return take_constant(plan, value);
    }
    return 0;
}

static int put_stamp(const char *format, PyObject *stamp, Out *out) {
    Py_ssize_t n = PyTuple_Size(stamp), size = 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *value = PyTuple_GetItem(stamp, i);
        char code = next_code(&format, &size);
        int done = 0;
        if (code == 'Q') {
            unsigned long long number = PyLong_AsUnsignedLongLong(value);
            done = PyErr_Occurred() ? is_other() : put(out, &number, 8);
        } else if (code == 'd') {
            double number = PyFloat_AsDouble(value);
            done = PyErr_Occurred() ? is_other() : put(out, &number, 8);
        } else if (code == 's' && PyBytes_CheckExact(value) && PyBytes_Size(value) == size) {
            done = put(out, PyBytes_AsString(value), size);
        }
        if (done <= 0) return done;
    }
    return !next_code(&format, &size);
}

PyDoc_STRVAR(frame_doc,
"frame(layout, stamp, tree)\n--\n\n"
"Return a tree's frame as bytes; None if it is not of this structure.\n\n"
"layout is (frame with holes, where the numbers are, and end, format of the stamp, plan).");

static PyObject *frame(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    PyObject *template, *plan;
    Py_ssize_t at, end;
    const char *format;
    if (!has_arguments(n, 3) || !PyArg_ParseTuple(args[0], "SnnsO!", &template, &at, &end, &format,
                                                  &PyTuple_Type, &plan))
        return NULL;
    Py_ssize_t nbytes = PyBytes_Size(template);
    if (nbytes < PREFIX_BYTES || at < PREFIX_BYTES || end < at || end > nbytes) Py_RETURN_NONE;
    PyObject *made = PyBytes_FromStringAndSize(NULL, nbytes);
    if (!made) return NULL;
    char *memory = PyBytes_AsString(made);
    memcpy(memory, PyBytes_AsString(template), nbytes);
    Out out = {memory, nbytes, memory + at, memory + end};
    int done = put_stamp(format, args[1], &out);
    if (done > 0) done = take(plan, args[2], &out);
    uint32_t crc;
    if (done > 0 && out.number == out.end && !checksum(memory + CRC_END, nbytes - CRC_END, &crc)) {
        memcpy(memory + CRC_AT, &crc, 4);
        return made;
    }
    Py_DECREF(made);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

/* ---- a frame into its tree --------------------------------------------------------------- */

static PyObject *built(PyObject *plan, PyObject *memory, PyObject *values);

/* (ARRAY, dtype, shape, offset): its place was checked when the plan was made. */
static PyObject *built_array(PyObject *plan, PyObject *memory) {
    return PyObject_CallFunctionObjArgs(ndarray, PyTuple_GetItem(plan, 2),
                                        PyTuple_GetItem(plan, 1), memory,
                                        PyTuple_GetItem(plan, 3), NULL);
}

/* (NUMBER, at) or (SCALAR, at, function of the bytes) */
static PyObject *built_number(PyObject *plan, PyObject *values, int is_scalar) {
    PyObject *value = PyTuple_GetItem(values, PyLong_AsSsize_t(PyTuple_GetItem(plan, 1)));
    if (!value) return NULL;
    if (is_scalar) return PyObject_CallFunctionObjArgs(PyTuple_GetItem(plan, 2), value, NULL);
    Py_INCREF(value);
    return value;
}

/* (DICT, ((key, plan), …)) */
static PyObject *built_dict(PyObject *pairs, PyObject *memory, PyObject *values) {
    PyObject *made = PyDict_New();
    for (Py_ssize_t i = 0; made && i < PyTuple_Size(pairs); i++) {
        PyObject *pair = PyTuple_GetItem(pairs, i);
        PyObject *item = built(PyTuple_GetItem(pair, 1), memory, values);
        if (!item || PyDict_SetItem(made, PyTuple_GetItem(pair, 0), item)) Py_CLEAR(made);
        Py_XDECREF(item);
    }
    return made;
}

/* (ITEMS, list or tuple, (plan, …)) */
static PyObject *built_items(PyObject *plan, PyObject *memory, PyObject *values) {
    PyObject *plans = PyTuple_GetItem(plan, 2);
    Py_ssize_t n = PyTuple_Size(plans);
    int is_list = PyTuple_GetItem(plan, 1) == (PyObject *)&PyList_Type;
    PyObject *made = is_list ? PyList_New(n) : PyTuple_New(n);
    for (Py_ssize_t i = 0; made && i < n; i++) {
        PyObject *item = built(PyTuple_GetItem(plans, i), memory, values);
        if (!item) Py_CLEAR(made);
        else if (is_list) PyList_SetItem(made, i, item);
        else PyTuple_SetItem(made, i, item);
    }
    return made;
}

/* (CONSTANT, value): the receiver may change a set. */
static PyObject *built_constant(PyObject *value) {
    if (PyAnySet_Check(value)) return PySet_New(value);
    Py_INCREF(value);
    return value;
}

static PyObject *built(PyObject *plan, PyObject *memory, PyObject *values) {
    switch (PyLong_AsLong(PyTuple_GetItem(plan, 0))) {
    case NUMBER: return built_number(plan, values, 0);
    case SCALAR: return built_number(plan, values, 1);
    case ARRAY: return built_array(plan, memory);
    case DICT: return built_dict(PyTuple_GetItem(plan, 1), memory, values);
    case ITEMS: return built_items(plan, memory, values);
    case CONSTANT: return built_constant(PyTuple_GetItem(plan, 1));
    }
    PyErr_SetString(PyExc_SystemError, "a plan of no kind");
    return NULL;
}

static PyObject *read_value(char code, const char *from, Py_ssize_t nbytes) {
    double real;
    long long number;
    unsigned long long positive;
    switch (code) {
    case 'd': return memcpy(&real, from, 8), PyFloat_FromDouble(real);
    case 'q': return memcpy(&number, from, 8), PyLong_FromLongLong(number);
    case 'Q': return memcpy(&positive, from, 8), PyLong_FromUnsignedLongLong(positive);
    case '?': return PyBool_FromLong(*from);
    case 's': return PyBytes_FromStringAndSize(from, nbytes);
    }
    PyErr_SetString(PyExc_SystemError, "a number of no kind");
    return NULL;
}

static PyObject *read_values(const char *format, Py_ssize_t count, const char *from, const char *end) {
    PyObject *values = PyTuple_New(count);
    Py_ssize_t nbytes = 0;
    for (Py_ssize_t i = 0; values && i < count; i++) {
        char code = next_code(&format, &nbytes);
        PyObject *value = NULL;
        if (nbytes <= end - from) value = read_value(code, from, nbytes);
        else PyErr_SetString(PyExc_SystemError, "numbers beyond their frame");
        from += nbytes;
        if (value) PyTuple_SetItem(values, i, value);
        else Py_CLEAR(values);
    }
    return values;
}

/* What is known of the frames that begin like this one; NULL if nothing is. */
static PyObject *known_of(PyObject *known, const char *memory, Py_ssize_t nbytes) {
    uint32_t header;
    if (nbytes < PREFIX_BYTES) return NULL;
    memcpy(&header, memory + CRC_END, 4);
    if (header > nbytes - PREFIX_BYTES) return NULL;
    PyObject *key = PyBytes_FromStringAndSize(memory + CRC_END, PREFIX_BYTES - CRC_END + header);
    if (!key) return NULL;
    PyObject *found = PyDict_GetItemWithError(known, key);
    Py_DECREF(key);
    return found;
}

/* Whether a frame of a known beginning is as long as that says, and undamaged; -1 on failure. */
static int is_sound(PyObject *start, Py_ssize_t wanted, const char *memory, Py_ssize_t nbytes) {
    Py_ssize_t size = PyBytes_Size(start);
    if (wanted != nbytes || size > nbytes || memcmp(PyBytes_AsString(start), memory, size)) return 0;
    if (size >= CRC_END) return 1;
    uint32_t crc, told;
    if (checksum(memory + CRC_END, nbytes - CRC_END, &crc)) return -1;
    memcpy(&told, memory + CRC_AT, 4);
    return told == crc;
}

PyDoc_STRVAR(opened_doc,
"opened(known, data)\n--\n\n"
"Return what a frame is about, its stamp's values and its tree; None if it is of no structure in\n"
"known, or not sound. The arrays refer to data, which is copied if it may not be written.\n\n"
"known has by header (bytes, size, start, about, format, values, where, has arrays, plan).");

static PyObject *opened(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    PyObject *start, *about, *plan, *unused, *made = NULL;
    Py_ssize_t wanted, count, where;
    const char *format;
    int has_arrays;
    if (!has_arguments(n, 2)) return NULL;
    PyObject *known = args[0], *data = args[1];
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)) return NULL;
    PyObject *found = known_of(known, view.buf, view.len);
    int sound = 0;
    if (found) {
        Py_INCREF(found); /* another thread may forget it */
        if (PyArg_ParseTuple(found, "nSOsnnpOO", &wanted, &start, &about, &format, &count, &where,
                             &has_arrays, &plan, &unused))
            sound = is_sound(start, wanted, view.buf, view.len);
    }
    if (sound > 0 && where >= 0 && where <= view.len) {
        const char *memory = view.buf;
        PyObject *values = read_values(format, count, memory + where, memory + view.len);
        PyObject *own = NULL;
        if (has_arrays && view.readonly) own = PyByteArray_FromStringAndSize(memory, view.len);
        PyObject *tree = values && !PyErr_Occurred() ? built(plan, own ? own : data, values) : NULL;
        if (tree) made = PyTuple_Pack(3, about, values, tree);
        Py_XDECREF(tree);
        Py_XDECREF(own);
        Py_XDECREF(values);
    }
    Py_XDECREF(found);
    PyBuffer_Release(&view);
    if (made || PyErr_Occurred()) return made;
    Py_RETURN_NONE;
}

/* ---- one exchange with the broker ------------------------------------------------------- */

#define MAX_PARTS 64

static long micros_since(const struct timespec *begin) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (now.tv_sec - begin->tv_sec) * 1000000L + (now.tv_nsec - begin->tv_nsec) / 1000;
}

/* Wait without sleeping until so many bytes can be read, for so long at most. Without the GIL.
 * Others on this core go first: one of them may be who is going to answer. */
static void look_out(int fd, int least, long micros) {
    struct timespec begin;
    int there = 0;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    while (!ioctl(fd, FIONREAD, &there) && there < least && micros_since(&begin) < micros)
        sched_yield();
}

PyDoc_STRVAR(spin_doc,
"spin(fd, least, micros)\n--\n\n"
"Wait without sleeping until so many bytes can be read, for so long at most.");

static PyObject *spin(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    if (!has_arguments(n, 3)) return NULL;
    int fd = (int)PyLong_AsLong(args[0]), least = (int)PyLong_AsLong(args[1]);
    long micros = PyLong_AsLong(args[2]);
    if (PyErr_Occurred()) return NULL;
    Py_BEGIN_ALLOW_THREADS
    look_out(fd, least, micros);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* Send all of it; -1 with errno. Without the GIL. */
static int send_all(int fd, struct iovec *parts, int n) {
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = n};
    while (message.msg_iovlen) {
        ssize_t sent = sendmsg(fd, &message, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0) return -1;
        while (message.msg_iovlen && (size_t)sent >= message.msg_iov->iov_len) {
            sent -= message.msg_iov->iov_len;
            message.msg_iov++;
            message.msg_iovlen--;
        }
        if (message.msg_iovlen) {
            message.msg_iov->iov_base = (char *)message.msg_iov->iov_base + sent;
            message.msg_iov->iov_len -= sent;
        }
    }
    return 0;
}

/* Receive what comes; -1 with an exception. */
static ssize_t receive(int fd, const Py_buffer *into) {
    ssize_t came = -1;
    while (!PyErr_CheckSignals()) { /* also one that came while it was sent */
        Py_BEGIN_ALLOW_THREADS
        came = recv(fd, into->buf, into->len, 0);
        Py_END_ALLOW_THREADS
        if (came >= 0) return came;
        if (errno == EINTR) continue;
        PyErr_SetFromErrno(PyExc_OSError);
        break;
    }
    return -1;
}

/* Bytes as something to send; -1 with an exception. */
static int part_of(PyObject *bytes, struct iovec *part) {
    char *from;
    Py_ssize_t nbytes;
    if (PyBytes_AsStringAndSize(bytes, &from, &nbytes)) return -1;
    *part = (struct iovec){from, nbytes};
    return 0;
}

/* The buffers of a list, of which there are n; -1 with an exception. */
static int parts_of(PyObject *list, Py_ssize_t n, Py_buffer *views, struct iovec *parts) {
    for (int i = 0; i < n; i++) {
        PyObject *part = PyList_GetItem(list, i);
        if (!part || PyObject_GetBuffer(part, &views[i], PyBUF_SIMPLE)) {
            while (i--) PyBuffer_Release(&views[i]);
            return -1;
        }
        parts[i] = (struct iovec){views[i].buf, views[i].len};
    }
    return 0;
}

/* "$", the size and the end of its line; returns how many bytes that is. */
static int bulk_line(Py_ssize_t nbytes, char *line) {
    char digits[24];
    int n = 0, at = 0;
    do digits[n++] = '0' + nbytes % 10; while (nbytes /= 10);
    line[at++] = '$';
    while (n) line[at++] = digits[--n];
    line[at++] = '\r';
    line[at++] = '\n';
    return at;
}

PyDoc_STRVAR(trade_doc,
"trade(fd, before, parts, nbytes, after, into, micros, least, usual, usual_bytes)\n--\n\n"
"Send buffers as a bulk string between others, and receive what answers them into a buffer.\n\n"
"Looks for at most so many microseconds without sleeping whether at least so many bytes can be\n"
"read. Returns the value that was popped, as a bytearray, if the answer has usual_bytes and\n"
"begins as usual; else how many bytes came. Raises OSError.");

static PyObject *trade(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    int failed;
    PyObject *made = NULL;
    Py_buffer into, views[MAX_PARTS];
    struct iovec parts[MAX_PARTS + 3];
    char line[32];
    if (!has_arguments(count, 10)) return NULL;
    int fd = (int)PyLong_AsLong(args[0]);
    Py_ssize_t n = PyList_Size(args[2]);
    if (n > MAX_PARTS) return PyErr_SetString(PyExc_ValueError, "too many parts"), NULL;
    Py_ssize_t nbytes = PyLong_AsSsize_t(args[3]), usual_bytes = PyLong_AsSsize_t(args[9]);
    long micros = PyLong_AsLong(args[6]), least = PyLong_AsLong(args[7]);
    PyObject *usual = args[8];
    if (PyErr_Occurred() || part_of(args[1], &parts[0]) || part_of(args[4], &parts[n + 2]))
        return NULL;
    if (PyObject_GetBuffer(args[5], &into, PyBUF_WRITABLE)) return NULL;
    if (!parts_of(args[2], n, views, parts + 2)) {
        parts[1] = (struct iovec){line, bulk_line(nbytes, line)};
        Py_BEGIN_ALLOW_THREADS
        failed = send_all(fd, parts, (int)n + 3);
        if (!failed && micros > 0) look_out(fd, (int)least, micros);
        Py_END_ALLOW_THREADS
        if (failed) PyErr_SetFromErrno(PyExc_OSError);
        while (n--) PyBuffer_Release(&views[n]);
        ssize_t came = failed ? -1 : receive(fd, &into);
        Py_ssize_t begin = PyBytes_Size(usual);
        if (came >= 0 && came == usual_bytes && begin + 2 <= came &&
            !memcmp(into.buf, PyBytes_AsString(usual), begin))
            made = PyByteArray_FromStringAndSize((char *)into.buf + begin, came - 2 - begin);
        else if (came >= 0)
            made = PyLong_FromSsize_t(came);
    }
    PyBuffer_Release(&into);
    return made;
}

/* ---- rows into a batch -------------------------------------------------------------------- */

#define MAX_LEAVES 64 /* as in agentlace/native.py */
#define MAX_WORKERS 8
#define STREAM_BYTES (16 << 20) /* a batch that no cache keeps */
#define STREAM_ROW_BYTES 4096

typedef struct {
    Py_buffer from, to;
    Py_ssize_t row_bytes;
} Leaf;

typedef struct {
    const Leaf *leaves;
    Py_ssize_t n_leaves, begin, end; /* of the batch's rows */
    const int64_t *rows;
    int streams;
} Share;

/* As memcpy, past the caches: memory that is written only need not be read before. */
static void stream(char *to, const char *from, Py_ssize_t nbytes) {
#ifdef __SSE2__
    Py_ssize_t head = -(uintptr_t)to & 15, at = head;
    memcpy(to, from, head);
    for (; at + 64 <= nbytes; at += 64) {
        const __m128i *source = (const __m128i *)(from + at);
        __m128i *target = (__m128i *)(to + at);
        _mm_prefetch(from + at + 1024, _MM_HINT_NTA);
        __m128i a = _mm_loadu_si128(source), b = _mm_loadu_si128(source + 1);
        __m128i c = _mm_loadu_si128(source + 2), d = _mm_loadu_si128(source + 3);
        _mm_stream_si128(target, a);
        _mm_stream_si128(target + 1, b);
        _mm_stream_si128(target + 2, c);
        _mm_stream_si128(target + 3, d);
    }
    memcpy(to + at, from + at, nbytes - at);
#else
    memcpy(to, from, nbytes);
#endif
}

static void *copy_share(void *given) {
    const Share *share = given;
    for (Py_ssize_t n = 0; n < share->n_leaves; n++) {
        const Leaf *leaf = &share->leaves[n];
        Py_ssize_t size = leaf->row_bytes;
        int streams = share->streams && size >= STREAM_ROW_BYTES;
        for (Py_ssize_t i = share->begin; i < share->end; i++) {
            char *to = (char *)leaf->to.buf + i * size;
            const char *from = (const char *)leaf->from.buf + share->rows[i] * size;
            if (streams) stream(to, from, size);
            else memcpy(to, from, size);
        }
    }
#ifdef __SSE2__
    _mm_sfence();
#endif
    return NULL;
}

/* Copy with the help of other threads; alone what they cannot be started for. */
static void copy_rows(Share all, int workers) {
    pthread_t threads[MAX_WORKERS];
    Share shares[MAX_WORKERS];
    sigset_t every, before;
    Py_ssize_t n = all.end;
    int started = 0;
    sigfillset(&every);
    pthread_sigmask(SIG_SETMASK, &every, &before); /* signals are for Python's threads */
    for (int i = 0; i < workers; i++) {
        shares[i] = all;
        shares[i].begin = n * i / workers;
        shares[i].end = n * (i + 1) / workers;
    }
    while (started < workers - 1 &&
           !pthread_create(&threads[started], NULL, copy_share, &shares[started]))
        started++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    for (int i = started; i < workers; i++) copy_share(&shares[i]);
    while (started) pthread_join(threads[--started], NULL);
}

/* Whether a leaf has rows of one size at both ends, and all that are wanted. */
static int fits(const Leaf *leaf, const int64_t *rows, Py_ssize_t n) {
    if (!leaf->row_bytes || leaf->to.len != n * leaf->row_bytes) return 0;
    Py_ssize_t there = leaf->from.len / leaf->row_bytes;
    for (Py_ssize_t i = 0; i < n; i++)
        if (rows[i] < 0 || rows[i] >= there) return 0;
    return 1;
}

PyDoc_STRVAR(gather_doc,
"gather(sources, targets, rows, workers)\n--\n\n"
"Copy rows of each source, by their int64 numbers, into the target beside it.\n\n"
"All are contiguous buffers. So many threads do it, this one included; it lets others run\n"
"meanwhile. Raises ValueError, before anything was copied, if sizes or numbers do not fit.");

static PyObject *gather(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    Leaf leaves[MAX_LEAVES];
    Py_buffer rows;
    Py_ssize_t taken = 0, nbytes = 0;
    int fit = 1;
    if (!has_arguments(count, 4)) return NULL;
    Py_ssize_t n_leaves = PyList_Size(args[0]);
    long workers = PyLong_AsLong(args[3]);
    if (PyErr_Occurred() || PyList_Size(args[1]) != n_leaves || n_leaves > MAX_LEAVES) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "too many leaves, or too few");
        return NULL;
    }
    if (PyObject_GetBuffer(args[2], &rows, PyBUF_SIMPLE)) return NULL;
    Py_ssize_t n = rows.len / sizeof(int64_t);
    for (; n > 0 && fit && taken < n_leaves; taken++) {
        Leaf *leaf = &leaves[taken];
        if (PyObject_GetBuffer(PyList_GetItem(args[0], taken), &leaf->from, PyBUF_SIMPLE)) break;
        if (PyObject_GetBuffer(PyList_GetItem(args[1], taken), &leaf->to, PyBUF_WRITABLE)) {
            PyBuffer_Release(&leaf->from);
            break;
        }
        leaf->row_bytes = leaf->to.len / n;
        nbytes += leaf->to.len;
        fit = fits(leaf, rows.buf, n);
    }
    if (!fit) PyErr_SetString(PyExc_ValueError, "rows that are not there, or of another size");
    if (!PyErr_Occurred()) {
        Share all = {leaves, taken, 0, n, rows.buf, nbytes >= STREAM_BYTES};
        Py_BEGIN_ALLOW_THREADS
        copy_rows(all, workers < 1 ? 1 : workers > MAX_WORKERS ? MAX_WORKERS : (int)workers);
        Py_END_ALLOW_THREADS
    }
    while (taken--) {
        PyBuffer_Release(&leaves[taken].from);
        PyBuffer_Release(&leaves[taken].to);
    }
    PyBuffer_Release(&rows);
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

/* ---- the module ------------------------------------------------------------------------- */

static PyMethodDef methods[] = {
    {"frame", (PyCFunction)(void (*)(void)) frame, METH_FASTCALL, frame_doc},
    {"opened", (PyCFunction)(void (*)(void)) opened, METH_FASTCALL, opened_doc},
    {"spin", (PyCFunction)(void (*)(void)) spin, METH_FASTCALL, spin_doc},
    {"trade", (PyCFunction)(void (*)(void)) trade, METH_FASTCALL, trade_doc},
    {"gather", (PyCFunction)(void (*)(void)) gather, METH_FASTCALL, gather_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "agentlace._native", "The inner loops of a small call.", -1, methods,
    NULL, NULL, NULL, NULL,
};

static PyObject *attribute(const char *from, const char *name) {
    PyObject *imported = PyImport_ImportModule(from);
    PyObject *found = imported ? PyObject_GetAttrString(imported, name) : NULL;
    Py_XDECREF(imported);
    return found;
}

PyMODINIT_FUNC PyInit__native(void) {
    crc32_of = attribute("zlib", "crc32");
    ndarray = crc32_of ? attribute("numpy", "ndarray") : NULL;
    name_tobytes = PyUnicode_InternFromString("tobytes");
    name_dtype = PyUnicode_InternFromString("dtype");
    if (!ndarray || !name_tobytes || !name_dtype) return NULL;
    PyObject *made = PyModule_Create(&module);
    if (made && PyModule_AddIntConstant(made, "VERSION", VERSION)) Py_CLEAR(made);
    return made;
}
