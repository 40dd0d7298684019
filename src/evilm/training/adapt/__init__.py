"""A trained model on a user's own clips: from a folder or a list of captions to a checkpoint that knows them.

In the order in which things happen:

    captions   what the clips are called                  (list, texts beside, file names -> examples)
    split      which of them are held out                 (examples -> two parts without a shared video)
    words      which words the model does not know        (captions -> a start with room for them)
    readable   which of them give frames                   (videos -> those that do, and why others do not)
    adapting   before, training, after
"""
